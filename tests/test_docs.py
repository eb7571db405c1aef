"""What the texts quote is generated: README.md, docs/results.md and docs/options.md say what they are to say."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from blockshock.errors import InputError
from blockshock.kernels.streamed_plan import MOST_TOKENS
from blockshock.machine.combines.fused import MOST_TOKENS as FUSED_TOKENS
from blockshock.machine.combines.symmetric import MOST_BLOCKS as SHARED_BLOCKS
from blockshock.machine.combines.workspace import MOST_BYTES
from blockshock.methods import METHODS
from blockshock.phases.builds import BLOCKS, BUILDS, MOST_BLOCKS, disturbed
from blockshock.phases.ceilings import KEPT_SECONDS
from blockshock.phases.drift import STEPS
from blockshock.plugin.together import LOST_SECONDS
from blockshock.pruning import CALIBRATION_TOKENS
from blockshock.report.answer import answer, pays
from blockshock.report.fastest import against_best
from blockshock.report.remarks import SHORT_MS, remarks
from blockshock.saved.pairs import MARGIN, WIDE
from blockshock.saved.results import NotARun, read_run

ROOT = Path(__file__).parent.parent
OFFICIAL = ROOT / "benchmark_results" / "official"
RUN = "0006_2xH200-full"
WORDS = {"a": 1, "two": 2, "three": 3, "five": 5, "eight": 8, "ten": 10}

sys.path.append(str(ROOT / "docs"))
from generate import gist, pages, with_answers  # noqa: E402
from said import GATHERED, HALVES, ONE_GPU, PRUNED_TP, TWO_GPUS, WAYS, said  # noqa: E402


def test_the_texts_say_what_their_runs_and_options_say() -> None:
    for path, text in pages():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is of another version: python docs/generate.py"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


def test_the_readmes_method_is_one_that_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "@METHODS" in block)
    assert len([line for line in example.splitlines() if line]) <= 5
    monkeypatch.setattr(METHODS, "_entries", {name: METHODS.get(name) for name in METHODS.names()})
    exec(compile(example, "README.md", "exec"), {})
    assert METHODS.get("mine").span == METHODS.get("dense_single").span


def test_the_theory_counts_the_disturbed_blocks_of_the_run_that_it_names() -> None:
    said = re.search(r"of (\d+) blocks of `(\S+)` that was so in (\d+)", (ROOT / "docs" / "theory.md").read_text())
    assert said is not None
    run = read_run(ROOT / "benchmark_results" / "official" / said[2])
    pairs = [(pair["first"], pair["second"]) for info in run.infos for pair in info.get("blocks", {}).values()]
    assert sum(len(first) for first, _ in pairs) == int(said[1])
    assert sum(len(disturbed(pair)) for pair in pairs) == int(said[3])


@pytest.mark.parametrize(
    ("text", "says", "are"),
    [
        ("measuring", r"Ten blocks \(five on a CPU\) .*? up to (\d+)", [MOST_BLOCKS["cuda"]]),
        ("measuring", r"(Ten) blocks \((five) on a CPU\)", [BLOCKS["cuda"], BLOCKS["cpu"]]),
        ("measuring", r"all rounds of (three) builds \((two) on a CPU\)", [BUILDS["cuda"], BUILDS["cpu"]]),
        ("measuring", r"more than (\d+) % from one; `tie`: all of it is within (\d+) %", [100 * MARGIN, 100 * MARGIN]),
        ("measuring", r"an interval of more than a factor of ([\d.]+)", [WIDE]),
        ("measuring", r"their times below ([\d.]+) ms contain", [SHORT_MS]),
        ("measuring", r"fed its own output (\d+) times", [STEPS]),
        ("measuring", r"what was measured is kept for (a) day", [KEPT_SECONDS / 86400]),
        ("measuring", r"at the rate of memory, for up to (\d+) tokens", [MOST_TOKENS]),
        ("measuring", r"which look at (\d+) inputs", [CALIBRATION_TOKENS]),
        ("measuring", r"`fused` .* for up to (\d+) tokens on 2 or 4 GPUs", [FUSED_TOKENS]),
        ("measuring", r"hold up to (\d+) MiB a group of ranks", [MOST_BYTES / 2**20]),
        ("layer", r"in more than (eight) blocks, .* for up to (\d+) rows", [SHARED_BLOCKS, FUSED_TOKENS]),
        ("clusters", r"ends the session within `--rank-timeout` and half (a) minute", [2 * LOST_SECONDS / 60]),
        ("../benchmark_results/README", r"so that times below ([\d.]+) ms contain", [SHORT_MS]),
    ],
)
def test_the_texts_say_the_constants_of_the_code(text: str, says: str, are: list[float]) -> None:
    said = re.search(says, " ".join((ROOT / "docs" / f"{text}.md").read_text(encoding="utf-8").split()))
    assert said is not None
    assert [float(WORDS.get(found.lower(), found)) for found in said.groups()] == pytest.approx(are)


def test_what_is_installed_is_as_large_as_the_readme_says() -> None:
    if torch.version.cuda:
        pytest.skip("the size is that of torch's CPU build")
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = asked["optional-dependencies"]
    size = sum(
        file.locate().stat().st_size  # type: ignore[attr-defined]
        for name in required([*asked["dependencies"], *extras["report"], *extras["suite"]])
        for file in importlib.metadata.files(name) or ()
        if file.locate().exists()  # type: ignore[attr-defined]
    )
    said = re.search(r"That takes (\d+) GB with torch's CPU build", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert said is not None
    assert round(size / 1e9) == int(said[1])


def test_each_command_of_the_texts_that_lists_formats_has_the_row_that_others_are_compared_with() -> None:
    texts = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    listed = [found for path in texts for found in re.findall(r"pytest .*--formats[ =](\S+)", path.read_text())]
    assert listed
    assert all("plain" in formats.split(",") for formats in listed)


def required(requirements: list[str]) -> set[str]:
    """The distributions that are installed for them, and for those."""
    found: set[str] = set()
    todo = [Requirement(one) for one in requirements]
    while todo:
        one = todo.pop()
        if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(one.name)
            todo += map(Requirement, importlib.metadata.requires(one.name) or ())
    return found


MEASURED = re.compile(r"\d[\d.,]* ?(?:[µmn]s|minutes?|GB|GB/s|TB/s|TFLOP/s)\b")
"""Times, sizes and rates."""
COMPARED = ("their times below 0.2 ms", "That takes 1 GB with torch's CPU build")
"""What tests of this file compare with the code, and with what is installed."""
FILLED = re.compile(r"<!-- .*? -->.*?<!-- end -->", re.DOTALL)


@pytest.mark.parametrize(
    "text", ["README", *(f"docs/{name}" for name in ("measuring", "clusters", "layer", "architecture"))]
)
def test_no_text_says_what_was_measured_by_hand(text: str) -> None:
    assert by_hand((ROOT / f"{text}.md").read_text(encoding="utf-8")) == []


def test_no_docstring_says_what_was_measured() -> None:
    found = {}
    for path in sorted((ROOT / "blockshock").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and str(node.value.value)
            if said and (numbers := by_hand(said)):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = numbers
    assert found == {}


def test_a_number_by_hand_is_found() -> None:
    assert by_hand("takes 5 ms, or 4 to 10 µs; <!-- said: eager -->0.5 to 1.4 ms<!-- end -->") == ["5 ms", "10 µs"]


def by_hand(text: str) -> list[str]:
    """Numbers that nothing generates or compares."""
    text = " ".join(FILLED.sub("", text).split())
    for compared in COMPARED:
        text = text.replace(compared, "")
    return MEASURED.findall(text)


def test_an_answer_is_filled_in_and_what_stands_around_it_stays() -> None:
    text = f"before\n<!-- answer: {RUN} -->\nold numbers\n<!-- end -->\nafter\n"
    filled = with_answers(text)
    assert with_answers(filled) == filled
    run = read_run(ROOT / "benchmark_results" / "official" / RUN)
    lines = [line for line in answer(run) if ", forward and backward" not in line]
    for spared in (
        f", torch {run.machine['torch']}, commit {run.machine['git_commit']}",
        ": undecided within 3% or their builds' scatter",
    ):
        assert spared in "".join(lines)
        lines = [line.replace("; elsewhere not paired" + spared, "").replace(spared, "") for line in lines]
    assert len(lines) == len(answer(run)) - 1
    named = [remark for remark in remarks(run) if "multiplies zeros" not in remark]  # of a row that no line names
    listed = "".join(f"- {line}\n" for line in [*lines, *map(gist, named)])
    assert filled == text.replace("old numbers\n", listed)
    assert filled.count("flushed by zeroing") == 1, "a remark"


@pytest.mark.parametrize("run", ["0009_2xH100", "0011_1xH100-pruned"])
def test_an_answer_keeps_its_numbers_without_versions(run: str) -> None:
    """Of parts at several commits too, and of points of which some were paired."""
    filled = with_answers(f"<!-- answer: {run} -->\n<!-- end -->")
    assert not re.search("torch|commit|scatter|elsewhere", filled)
    assert ", 2026-11-26 · " in filled
    assert filled.count("\n- ") == filled.count("Time ÷ best dense") + 1
    assert len(re.findall(r"\. (?:Paired at (?:all )?\d+|Not paired$)", filled, re.MULTILINE)) == filled.count("Time ÷")


def test_the_gist_of_a_remark_is_its_first_sentence_without_files() -> None:
    remark = "parts differ in their commit 1d43 (1_forward.json.gz, 2_verdicts.json.gz) and 09bd (5_backward.json)"
    assert gist(remark) == "parts differ in their commit 1d43 and 09bd"
    assert gist("zeros in a product (0.94 here). With zeros a GPU is faster") == "zeros in a product (0.94 here)"


def test_a_number_is_filled_in_where_it_stands() -> None:
    text = "medians of <!-- said: torchrun -->9 to 99<!-- end --> of each other"
    assert re.fullmatch(
        r"medians of <!-- said: torchrun -->0\.\d\d to 1\.\d\d<!-- end --> of each other", with_answers(text)
    )


@pytest.mark.parametrize(
    ("name", "run"),
    [
        *((name, WAYS) for name in ("fastest", "transposed", "kernel and sum")),
        *(("halves", HALVES), ("two GPUs", TWO_GPUS), ("eager", ONE_GPU)),
    ],
)
def test_a_time_is_said_with_the_cards_of_its_run(name: str, run: str) -> None:
    """As the run's folder is called."""
    cards = re.match(r"\d{4}_(\d+)x([A-Z]\d+)", run)
    assert cards is not None
    assert f"on {cards[1]} × {cards[2]}" in said(name)


def test_two_gpus_are_told_of_what_pays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best and the worst of both halvings, and the points at which no reader should expect it."""
    told = said("two GPUs")
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")
    found = [one for one in against_best(read_run(OFFICIAL / TWO_GPUS)) if one.method in PRUNED_TP]
    steps = [one.ratio for one in found if one.section == "training"]
    assert f"training step {min(steps):.2f}–{max(steps):.2f} of the best dense" in told
    forward = [one for one in found if one.section == "forward"]
    paying = [one for one in forward if pays(one)]
    ratios = [one.ratio for one in paying]
    assert f"forward {min(ratios):.2f}–{max(ratios):.2f} where either pays" in told
    assert {(int(N), int(B)) for N, B in re.findall(r"(\d+)², B = (\d+)", told)} == {(one.N, one.B) for one in paying}
    assert told.endswith("slower elsewhere")
    slow = dataclasses.replace(paying[0], ratio=1.01)
    monkeypatch.setattr("said.against_best", lambda run: [slow if one in paying else one for one in found])
    assert said("two GPUs").endswith("forward nowhere faster")


def test_halves_by_nccl_are_told_of_from_least_to_most() -> None:
    told = said("halves")
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")
    found = [one for one in against_best(read_run(OFFICIAL / HALVES)) if one.label.startswith(GATHERED)]
    for section, name in (("forward", "forward"), ("training", "training step")):
        ratios = [one.ratio for one in found if one.section == section]
        assert f"{name} {min(ratios):.2f}–{max(ratios):.2f}" in told


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("<!-- answer: 0999_none -->\n<!-- end -->\n", NotARun, "0999_none"),
        ("<!-- answer -->\n<!-- end -->\n", InputError, "begins with"),
        (f"<!-- answer: {RUN} -->\nnumbers\n", InputError, "ends with"),
        ("<!-- said: nothing -->1<!-- end -->", InputError, "no number is called 'nothing': choose of written back"),
    ],
)
def test_what_cannot_be_filled_is_named(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        with_answers(text)
