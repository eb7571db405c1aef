"""The report on saved runs: what it says, what it reads, what it skips and why, and that it is quick."""

import copy
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT

from blockshock.__main__ import main
from blockshock.report.answer import answer
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
    machine, right, forward, training, verdicts = answer(read_run(FORWARD))
    assert machine.startswith("2 CUDA ranks on 2 × NVIDIA H200, 143771 MiB; torch 2.11.0+cu130, nccl 2.28.9")
    assert right == "right: 302 of 302 results that were checked"
    assert forward.startswith(
        "forward: the fastest block_shock takes 1.23 of the best dense alternative's time (1.01 to 3.02 over 22 "
        "points: dense_single at 11, dense_tp_row at 6, dense_tp_col at 3, dtensor_col at 2), "
        "1.07 of dense_tp_row's time (1.00 to 1.15 over 22 points), 1.17 of dense_single's time"
    )
    assert training == "training step: not timed with its rivals"
    assert verdicts.startswith("verdicts: none in this run; `pytest tests/test_hypotheses.py")
    assert "1.00 of dense_tp_row's time (0.98 to 1.08 over 12 points)" in list(answer(read_run(TRAINING)))[3]
    assert list(answer(read_run(VERDICTS)))[4].startswith(
        "verdicts: H1 slower at 30 (against dense_tp_row); H2 faster at 41, slower at 17, undecided at 1, tie at 1 "
    )


def test_tables_for_a_terminal_and_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    status, terminal, _ = _report(capsys, TRAINING)
    assert status == 0
    assert "phase 3 gaussian N=8192 K=8192 B=4096 bf16 adamw, 2 CUDA ranks, cuda_graph" in terminal
    rows = [line for line in terminal.splitlines() if line.startswith(" block_shock gathered 1100 compressed ")]
    assert len(rows) == 12
    _, markdown, _ = _report(capsys, TRAINING, "--format", "md")
    assert "### phase 3 gaussian N=8192 K=8192 B=4096 bf16 adamw" in markdown
    assert [line for line in markdown.splitlines() if line.startswith("| block_shock gathered 1100 compressed ")]


def test_two_runs_are_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = json.loads(VERDICTS.read_text())
    saved["benchmarks"] = json.loads(TRAINING.read_text())["benchmarks"][:3]
    for bench in saved["benchmarks"]:
        bench["extra_info"]["p50_ms"] *= 2
        bench["stats"]["data"] = [2 * seconds for seconds in bench["stats"]["data"]]
    (tmp_path / "slower.json").write_text(json.dumps(saved))
    _, out, _ = _report(capsys, TRAINING, tmp_path / "slower.json")
    assert f"2 runs, p50 in ms and ÷ that of {TRAINING.name}: 3 benchmarks in all of them" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(" test_training_step")] == ["2.00"] * 3


def test_a_folder_is_a_run_made_in_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = json.loads(TRAINING.read_text())
    first, second = saved["benchmarks"][:40], copy.deepcopy(saved["benchmarks"][30:60])
    for bench in second:
        bench["extra_info"]["p50_ms"], bench["stats"]["data"] = 1e6, [1e3]
    (tmp_path / "1.json").write_text(json.dumps(saved | {"benchmarks": first}))
    saved["machine_info"]["blockshock"]["git_commit"] = "another"
    saved["machine_info"]["blockshock"]["ceilings"] = {"launch_s": 1e-6}
    (tmp_path / "Linux").mkdir()
    (tmp_path / "Linux" / "2.json.gz").write_bytes(gzip.compress(json.dumps(saved | {"benchmarks": second}).encode()))
    (tmp_path / "3.json").write_text("{")
    run = read_run(tmp_path)
    assert len(run.records) == 60
    medians = {record["name"]: record["extra_info"]["p50_ms"] for record in run.records}
    assert [medians[bench["name"]] == 1e6 for bench in second] == [True] * 30
    assert run.machine["ceilings"] == {"launch_s": 1e-6}, "of the part that has some"
    status, out, _ = _report(capsys, tmp_path)
    assert status == 0
    assert "- 10 results were measured more than once: shown is the last" in out
    assert "- parts differ in their commit: 63bfce9c9f4f (1.json); another (2.json.gz)" in out
    assert f"- skipped {tmp_path / '3.json'}: damaged" in out
    assert "differ in their GPUs" not in out


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(NotARun, match=r"no saved run in it; skipped .*odd\.json"):
        read_run(tmp_path)


def test_the_latest_run_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert _report(capsys)[::2] == (
        1,
        "no saved run in benchmark_results: make one with `tox run -e bench`, or name a file\n",
    )
    folder = tmp_path / "benchmark_results" / "machine"
    folder.mkdir(parents=True)
    (folder / "0001_a.json.gz").write_bytes(gzip.compress(VERDICTS.read_bytes()))
    assert latest_run() == Path("benchmark_results/machine/0001_a.json.gz")
    status, out, _ = _report(capsys)
    assert status == 0
    assert "H1 block_shock gathered 1100 against dense_tp_row" in out


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
    assert "H4 block_shock" in out


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
    assert "2 CUDA ranks on unnamed hardware; versions unknown" in out


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
    _, out, _ = _report(capsys, tmp_path / "marked.json")
    assert "[red]a group[/red] :tada:" in out
    assert "[bold]a label" in out


def test_a_report_does_not_import_torch() -> None:
    code = (
        "import sys; from blockshock.__main__ import main; "
        f"status = main(['report', {str(VERDICTS)!r}]); sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_the_doctor_need_none_of_what_draws() -> None:
    heavy = ("torch", "jinja2", "rich")
    code = (
        "import sys, contextlib; from blockshock.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['report', '--help'])\n"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--to FOLDER" in done.stdout
