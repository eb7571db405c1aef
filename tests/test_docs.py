"""What the texts quote is generated: README.md, docs/results.md and docs/options.md say what they are to say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from blockshock.errors import InputError
from blockshock.methods import METHODS
from blockshock.phases.builds import disturbed
from blockshock.report.answer import answer
from blockshock.saved.results import NotARun, read_run

ROOT = Path(__file__).parent.parent
RUN = "0006_2xH200-full"

sys.path.append(str(ROOT / "docs"))
from generate import pages, with_answers  # noqa: E402


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


def test_an_answer_is_filled_in_and_what_stands_around_it_stays() -> None:
    text = f"before\n<!-- answer: {RUN} -->\nold numbers\n<!-- end -->\nafter\n"
    filled = with_answers(text)
    assert with_answers(filled) == filled
    listed = "".join(f"- {line}\n" for line in answer(read_run(ROOT / "benchmark_results" / "official" / RUN)))
    assert filled == text.replace("old numbers\n", listed)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("<!-- answer: 0999_none -->\n<!-- end -->\n", NotARun, "0999_none"),
        ("<!-- answer -->\n<!-- end -->\n", InputError, "begins with"),
        (f"<!-- answer: {RUN} -->\nnumbers\n", InputError, "ends with"),
    ],
)
def test_what_cannot_be_filled_is_named(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        with_answers(text)
