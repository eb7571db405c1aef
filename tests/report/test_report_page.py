"""The report as a folder: its page, its plots and its tables; what is in them, and what they fetch."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from inner_pytest import ROOT
from report_pages import FORWARD, VERDICTS, written_to

from blockshock.__main__ import main
from blockshock.report.page import slimmed
from blockshock.report.tables import Column, Table

OFFICIAL = ROOT / "benchmark_results" / "official"
MOST_BYTES = 1.5e6
TIMED_PLOTS = ("ratio", "time", "stages", "memory")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on parts of official runs."""
    return written_to(tmp_path_factory.mktemp("report"))


def _part(run: Path, path: Path, **values: object) -> Path:
    """A run with those benchmarks alone that have these values."""
    saved = json.loads(run.read_text())
    saved["benchmarks"] = [
        bench
        for bench in saved["benchmarks"]
        if all(bench["extra_info"][name] == value for name, value in values.items())
    ]
    path.write_text(json.dumps(saved))
    return path


def _names(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "plots").glob("*.svg")}


def test_every_plot_of_every_phase_is_written_once(written: Path) -> None:
    names = _names(written)
    assert {f"forward-gaussian-bf16-{name}" for name in (*TIMED_PLOTS, "roofline")} <= names
    assert {f"training-gaussian-bf16-sgd-{name}" for name in TIMED_PLOTS} <= names
    assert {"heat", "accuracy-outputs-gaussian-bf16-error"} <= names
    assert len(names) <= 20
    page = (written / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<figure id="([^"]+)"', page)) == names
    assert all("<style>" in (written / "plots" / f"{name}.svg").read_text() for name in names)


def test_every_table_is_written_with_its_numbers_in_full(written: Path) -> None:
    with (written / "tables" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"faster", "slower"} < {row["verdict"] for row in rows}
    assert {"stages.matmul.p50_ms", "alone.pack.p50_ms", "work.flops"} <= set(rows[0])
    with (written / "tables" / "time-by-stage-ms-forward-phase-1.csv").open(encoding="utf-8") as file:
        stages = list(csv.DictReader(file))
    timed = [row for row in rows if row["phase"] == "1" and row["p50_ms"]]
    assert len(stages) == len(timed)
    assert {row["p50"] for row in stages} == {row["p50_ms"] for row in timed}


def test_no_table_says_again_what_another_says(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r'<details class="table" id="([^"]+)"', page)
    assert 8 < len(tables) == len(set(tables)) < 16


@pytest.mark.parametrize("name", ["0006_2xH200-full", "0009_2xH100", "0011_1xH100-pruned"])
def test_the_page_of_an_official_run_is_small(name: str, tmp_path: Path) -> None:
    assert main(["report", str(OFFICIAL / name), "--to", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size <= MOST_BYTES


def test_the_page_fetches_nothing_and_is_the_same_again(written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.[^\s\"'<)]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)', page)) <= set(ids)
    few = _part(VERDICTS, tmp_path / "few.json", hypothesis="H1")
    assert main(["report", str(few), "--to", str(tmp_path / "a")]) == 0
    assert main(["report", str(few), "--to", str(tmp_path / "b")]) == 0
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 4
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_a_new_report_leaves_nothing_of_the_old_one_and_all_that_is_not_ours(tmp_path: Path) -> None:
    few = _part(VERDICTS, tmp_path / "few.json", hypothesis="H2")
    folder = tmp_path / "new" / "folder"
    main(["report", str(FORWARD), "--to", str(folder)])
    assert "forward-gaussian-bf16-ratio" in _names(folder)
    (folder / "plots" / "mine.svg").write_bytes(b"")
    main(["report", str(few), "--to", str(folder)])
    assert _names(folder) == {"verdicts-h2-gaussian-bf16-adamw-claim", "mine"}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(VERDICTS), "--to", str(tmp_path / "file" / "folder")]) == 1
    assert f"cannot write the report to {tmp_path / 'file' / 'folder'}" in capsys.readouterr().err


def test_several_runs_are_answered_and_compared_in_one_page(tmp_path: Path) -> None:
    first = _part(FORWARD, tmp_path / "first.json", phase=1, workload="gaussian", N=4096, kernel=None)
    saved = json.loads(first.read_text())
    for bench in saved["benchmarks"]:
        bench["extra_info"]["p50_ms"] *= 2
        bench["stats"]["data"] = [2 * seconds for seconds in bench["stats"]["data"]]
    (tmp_path / "second.json").write_text(json.dumps(saved))
    main(["report", str(first), str(tmp_path / "second.json"), "--to", str(tmp_path / "to")])
    with (tmp_path / "to" / "tables" / "runs-compared.csv").open(encoding="utf-8") as file:
        changes = [float(row["change"]) for row in csv.DictReader(file)]
        assert changes == pytest.approx([1.0] * (len(saved["benchmarks"]) + 1)), "the last is the geometric mean"
    page = (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    assert "2 runs beside each other" in page
    assert page.count('<ul class="answer">') == 2
    names = {"first-json-forward-gaussian-bf16-time", "second-json-forward-gaussian-bf16-time"}
    assert names <= set(re.findall(r'<figure id="([^"]+)"', page))


def test_what_is_missing_is_named_with_what_measures_it(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    missing = page.rpartition("What is missing</h3>")[2]
    assert "Forward and backward (phase 2): <code>pytest tests/test_phase2_backward.py -m bench</code>" in missing
    assert "Drift: <code>pytest tests/test_drift.py</code>" in missing
    assert "Forward (phase 1)" not in missing


def test_what_all_rows_share_is_said_once() -> None:
    forms = {"workload": "", "N": "d", "K": "d", "B": "d", "dtype": "", "optimizer": "", "method": "", "loss": ""}
    table = Table("t", "training", (*(Column(*form) for form in forms.items()), Column("optimizer", ".4f")))
    table.rows = [("gaussian", 64, 64, B, dtype, "sgd", "a", "sum", 1.0) for B, dtype in ((4, "bf16"), (8, "fp16"))]
    slim, said = slimmed(table)
    assert said == ["gaussian", "sgd", "sum"]
    assert [column.name for column in slim.columns] == ["N = K", "B", "method", "optimizer", "dtype"]
    assert slim.rows == [(64, 4, "a", 1.0, "bf16"), (64, 8, "a", 1.0, "fp16")]
    table.rows[0] = ("gaussian", 64, 128, *table.rows[0][3:])
    assert [column.name for column in slimmed(table)[0].columns][:3] == ["N", "K", "B"]
    other = Table("u", "machine", (Column("what"), Column("N", "d")), [("x", 1)])
    assert slimmed(other)[0].rows == other.rows
