"""The report on saved runs: what it says, what it reads, what it skips and why, and that it is quick."""

import copy
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT

from blockshock.__main__ import main
from blockshock.report.answer import answer
from blockshock.report.command import pasted
from blockshock.saved.results import NotARun, latest_run, read_run

OFFICIAL = ROOT / "benchmark_results" / "official"
FORWARD, TRAINING, VERDICTS = sorted(OFFICIAL.glob("*.json"))[:3]


@pytest.fixture(autouse=True)
def no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def _report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_answer_of_the_official_runs() -> None:
    assert answer(read_run(FORWARD)) == [
        "2 × NVIDIA H200, bf16, CUDA graphs, recorded W and random W (gaussian), N 384–40960, K 384–40960, B 16–1024, "
        "torch 2.11.0+cu130, commit 13a1670406fb, 2026-11-21 · 500 results, 302 checked: all right",
        "block_shock, forward: does not pay, undecided at 4 of 22 points. Time ÷ best dense (dense_single at 11, "
        "dense_tp_row at 6, dense_tp_col at 3, dtensor_col at 2): 1.23, 1.01–3.02. Eager, launch included: 2.13, "
        "0.24–6.73. Not paired: undecided within 3% or their builds' scatter",
    ]
    ran, judged = answer(read_run(VERDICTS))
    assert ran.endswith("150 results, none checked")
    assert judged.endswith(
        ": 1.06, 1.02–2.16. Paired at all 15 (median interval ± 0.2%, within this session): slower at 15"
    )
    ran, pruned, *_ = answer(read_run(OFFICIAL / "0011_1xH100-pruned"))
    assert ", commits 1d4301185c54, 09bd568acdc5, e35f54c051fe, 2026-11-26 · " in ran, "of all parts"
    assert pruned == (
        "pruned cusparselt magnitude, forward: pays from B = 1024 on (8 of 20 "
        "points) and at 2 of the other 12 (28672×8192, B = 16 and 64), undecided at 2. Time ÷ best dense "
        "(dense_single): 0.98, 0.64–1.45; where it pays 0.64–0.98. Eager, launch included: 4.54, 0.73–12.81. Loses "
        "0.364 of the output before retraining. Paired at all 20 (median interval ± 0.5%, within this session): faster "
        "at 10, slower at 8, undecided at 2"
    )


def test_tables_for_a_terminal_and_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    status, terminal, _ = _report(capsys, TRAINING, "--tables")
    assert status == 0
    assert "phase 3 gaussian N=8192 K=8192 B=4096 bf16 adamw, 2 CUDA ranks, cuda_graph" in terminal
    rows = [line for line in terminal.splitlines() if line.startswith(" block_shock gathered 1100 compressed ")]
    assert len(rows) == 12
    _, markdown, _ = _report(capsys, TRAINING, "--format", "md")
    assert "### Time over the best dense: Training step (phase 3)" in markdown
    last = markdown.splitlines()[-1]
    assert last.startswith("Did not fit: "), "by name"
    assert last.endswith(" more. `python -m blockshock report RUN --tables` has them, or `--to FOLDER`")
    assert len(markdown.encode()) <= 60_000
    assert [line for line in markdown.splitlines() if "| block_shock gathered 1100 compressed |" in line]


@pytest.mark.parametrize("name", ["0009_2xH100", "0010_4xH100", "0011_1xH100-pruned"])
def test_what_the_answer_rests_on_stands_right_below_it(name: str) -> None:
    """First the answer, then what was asked and every verdict, then the times and what is lost; all else below."""
    run = read_run(OFFICIAL / name)
    titles = [line[4:] for line in "\n".join(pasted([run])).splitlines() if line.startswith("### ")]
    claims = {info["hypothesis"] for info in run.infos if "verdict" in info}
    asked, *rest = titles
    assert asked == "What was asked, and the answer"
    judged = [title for title in titles if title.split(" ")[0] in claims]
    assert {title.split(" ")[0] for title in judged} == claims
    assert rest[: len(judged)] == sorted(judged)
    times = [title for title in titles if title.startswith("Time over the best dense: ")]
    assert rest[len(judged) :][: len(times)] == times
    assert len(times) == 3
    loses = [title for title in titles if title.startswith("What weights of their own lose")]
    assert rest[len(judged) + len(times) :][: len(loses)] == loses
    assert bool(loses) == name.endswith("pruned")


def test_two_runs_are_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = json.loads(VERDICTS.read_text())
    saved["benchmarks"] = json.loads(TRAINING.read_text())["benchmarks"][:3]
    for bench in saved["benchmarks"]:
        bench["extra_info"]["p50_ms"] *= 2
        bench["stats"]["data"] = [2 * seconds for seconds in bench["stats"]["data"]]
    (tmp_path / "slower.json").write_text(json.dumps(saved))
    _, out, _ = _report(capsys, TRAINING, tmp_path / "slower.json")
    assert f"p50 in ms, {TRAINING.name} → slower.json: 3 benchmarks in all of them" in out
    assert sum(line.endswith("  +100.0%") for line in out.splitlines()) == 4, "and their mean; none has an interval"


def test_a_folder_is_a_run_made_in_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = json.loads(TRAINING.read_text())
    first, second = saved["benchmarks"][:40], copy.deepcopy(saved["benchmarks"][30:60])
    third = saved["benchmarks"][60:61]
    for bench in second:
        bench["extra_info"]["p50_ms"], bench["stats"]["data"] = 1e6, [1e3]
    (tmp_path / "1.json").write_text(json.dumps(saved | {"benchmarks": first}))
    saved["machine_info"]["blockshock"]["ceilings"] = {"launch_s": 1e-6}
    (tmp_path / "Linux").mkdir()
    (tmp_path / "Linux" / "2.json.gz").write_bytes(gzip.compress(json.dumps(saved | {"benchmarks": second}).encode()))
    saved["machine_info"]["blockshock"]["git_commit"] = "another"
    (tmp_path / "Linux" / "4.json").write_text(json.dumps(saved | {"benchmarks": third}))
    (tmp_path / "3.json").write_text("{")
    run = read_run(tmp_path)
    assert len(run.records) == 61
    medians = {record["name"]: record["extra_info"]["p50_ms"] for record in run.records}
    assert [medians[bench["name"]] == 1e6 for bench in second] == [True] * 30
    assert run.machine["ceilings"] == {"launch_s": 1e-6}, "of the part that has some"
    status, out, _ = _report(capsys, tmp_path)
    assert status == 0
    assert "\n10 results were measured more than once: shown is the last" in out
    assert "\nparts differ in their commit 63bfce9c9f4f (1.json, 2.json.gz) and another (4.json)" in out
    assert f"\nskipped {tmp_path / '3.json'}: damaged" in out
    assert "differ in their GPUs" not in out


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(NotARun, match=r"no saved run in it; skipped .*odd\.json"):
        read_run(tmp_path)


def test_the_latest_run_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert _report(capsys)[::2] == (
        1,
        "no saved run of your own in benchmark_results: make one with `tox run -e bench`, or name a file\n",
    )
    storage = tmp_path / "benchmark_results"

    def save(path: str, date: str, content: Path = VERDICTS) -> None:
        (storage / path).parent.mkdir(parents=True, exist_ok=True)
        raw = re.sub('"datetime": "[^"]*"', f'"datetime": "{date}"', content.read_text()).encode()
        (storage / path).write_bytes(gzip.compress(raw) if path.endswith(".gz") else raw)

    save("official/0001_later.json", "2026-11-30")
    assert "or name one of benchmark_results/official\n" in _report(capsys)[2]
    save("Linux-CPython-3.11-64bit/0001_a.json.gz", "2026-11-22T10:00:00")
    save("Linux-CPython-3.11-64bit/0002_b.json", "2026-11-21T10:00:00")
    assert latest_run() == Path("benchmark_results/Linux-CPython-3.11-64bit/0001_a.json.gz"), "not the last written"
    save("full/Linux-CPython-3.11-64bit/0001_correctness.json", "2026-11-23T10:00:00")
    save("full/Linux-CPython-3.11-64bit/0002_phases.json", "2026-11-20T10:00:00", TRAINING)
    save("journal/0001_20261124/session.json", "2026-11-24T10:00:00")
    assert latest_run() == Path("benchmark_results/full"), "of parts, as new as the newest of them"
    status, out, _ = _report(capsys)
    assert status == 0
    assert out.startswith("benchmark_results/full (2026-11-20T10:00)\n")
    assert "342 results" in out
    save("Linux-CPython-3.11-64bit/parts/1.json", "2026-11-25T10:00:00")
    assert latest_run() == Path("benchmark_results/Linux-CPython-3.11-64bit/parts")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "damaged, or no JSON"),
        (TRAINING.read_bytes()[:5000], "damaged, or no JSON"),
        (b"[1, 2]", "no run that pytest-benchmark saved"),
        (b'{"benchmarks": [{"name": "x"}]}', "no run that pytest-benchmark saved"),
        (b'{"benchmarks": [{"name": "x", "group": null, "extra_info": {}}]}', "none of Block-Shock's tests"),
        (b"\xff\xfe", "damaged, or no JSON"),
        (b'{"benchmarks": 3}', "no run that pytest-benchmark saved"),
    ],
)
def test_what_is_no_run_is_named_and_skipped(
    content: bytes | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotARun, match=why):
        read_run(path)
    status, _, err = _report(capsys, path)
    assert status == 1
    assert err.startswith(f"skipped {path}: ")
    status, out, err = _report(capsys, path, VERDICTS)
    assert status == 0, "the others are read"
    assert why in err
    assert "Paired at all 15 (median interval ± 0.2%, within this session): slower at 15" in out


@pytest.mark.parametrize("lacking", ["training_bytes", "update_p50_ms"])
def test_results_of_an_older_version_say_what_they_lack(
    lacking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = json.loads(TRAINING.read_text())
    for bench in saved["benchmarks"][:5]:
        del bench["extra_info"][lacking]
    del saved["machine_info"]["blockshock"]
    path = tmp_path / "older.json"
    path.write_text(json.dumps(saved))
    _, out, _ = _report(capsys, path)
    assert f"left out: 5 results that do not say their {lacking}, of another version it seems" in out
    shown = " ".join(out.split())
    assert "2 CUDA ranks on unnamed hardware, bf16, CUDA graphs, random W (gaussian), N " in shown
    assert ", versions unknown, 2026-11-22 · 187 results, none checked" in shown


@pytest.mark.parametrize(
    ("name", "value"), [("p50_ms", "fast"), ("stages", 3), ("N", None), ("B", 16.5), ("weight_bytes", 1e-300)]
)
def test_a_result_with_a_damaged_number_is_left_out_and_counted(name: str, value: object, tmp_path: Path) -> None:
    saved = json.loads(TRAINING.read_text())
    saved["benchmarks"][0]["extra_info"][name] = value
    (tmp_path / "odd.json").write_text(json.dumps(saved))
    run = read_run(tmp_path / "odd.json")
    assert run.left_out == {name: 1}
    assert len(run.records) == 191


def test_markup_in_a_run_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = json.loads(TRAINING.read_text())
    saved["benchmarks"] = saved["benchmarks"][:1]
    saved["benchmarks"][0]["group"] = "[red]a group[/red] :tada:"
    saved["benchmarks"][0]["extra_info"]["label"] = "[bold]a label"
    (tmp_path / "marked.json").write_text(json.dumps(saved))
    _, out, _ = _report(capsys, tmp_path / "marked.json", "--tables")
    assert "[red]a group[/red] :tada:" in out
    assert "[bold]a label" in out


def test_a_report_does_not_import_torch() -> None:
    code = (
        "import sys; from blockshock.__main__ import main; "
        f"status = main(['report', {str(VERDICTS)!r}]); sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_needs_none_of_what_it_helps_with() -> None:
    heavy = ("torch", "numpy", "jinja2", "rich", "blockshock.saved", "blockshock.doctor", "blockshock.report")
    code = (
        "import sys, contextlib; from blockshock.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['report', '--help'])\n"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--to FOLDER" in done.stdout
