"""Rows for a program: the same columns of every run, the number that the answer goes by, and valid JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from inner_pytest import ROOT
from rows import Info, checked, run_of, saved, stepped, timed, verdict

from blockshock.__main__ import main
from blockshock.methods import AXES
from blockshock.report.fastest import against_best
from blockshock.report.flat import COLUMNS, rows
from blockshock.saved.results import read_run

OFFICIAL = sorted((ROOT / "benchmark_results" / "official").iterdir())
OURS, DENSE = "block_shock gathered 1100", "dense_single"


def infos() -> list[Info]:
    return [
        checked(OURS, status="right"),
        checked(OURS, 128, status="wrong"),
        timed(OURS, 64, 4, 1.0, status="measured"),
        timed(DENSE, 64, 4, 2.0),
        stepped(DENSE, 64, 4, 2.0),
        verdict(DENSE),
    ]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_the_columns_are_those_of_every_run_whatever_its_age(path: Path) -> None:
    run = read_run(path)
    found = rows([run])
    assert len(found) == len(run.records)
    assert {tuple(row) for row in found} == {COLUMNS}
    numbers = {(one.label, *one.place): one.ratio for one in against_best(run)}
    told = {
        (row["label"], row["section"], *(row[name] for name in ("workload", "N", "K", "B", "dtype", "optimizer"))): row
        for row in found
        if row["÷ best dense"] is not None
    }
    assert all(told[key]["÷ best dense"] == ratio for key, ratio in numbers.items() if key in told)
    assert not any("p50_ms" in info and info.get("kind") != "network" for info in run.infos) or told


def test_no_run_fills_a_column_that_others_lack_and_each_is_filled_by_one() -> None:
    assert len(COLUMNS) == len(set(COLUMNS))
    assert {f"picks.{axis}" for axis in AXES.names()} <= set(COLUMNS)
    filled = {
        name for path in OFFICIAL for row in rows([read_run(path)]) for name, value in row.items() if value is not None
    }
    assert set(COLUMNS) - filled == {"wrong", "mask_every"}, "nothing official is, nor has what came later"


def test_a_row_that_is_wrong_is_not_called_right() -> None:
    found = rows([run_of(infos())])
    assert [row["status"] for row in found] == ["wrong", "wrong", "wrong", "measured", "measured", "measured"]
    assert all((row["status"] == "wrong") == bool(row["wrong"]) for row in found)
    assert [row["status"] for row in rows([run_of([checked(OURS), verdict(OURS)])])] == ["right", "measured"]


def test_the_number_is_beside_what_it_is_a_ratio_of() -> None:
    ours, dense = rows([run_of([timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)])])
    assert (ours["÷ best dense"], ours["best dense"], ours["paired"]) == (0.5, DENSE, False)
    assert (dense["÷ best dense"], dense["best dense"]) == (1.0, DENSE)
    pair = verdict(OURS, ratio=0.7, rival=DENSE)
    assert rows([run_of([timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0), pair])])[0]["÷ best dense"] == 0.7
    wrong = rows([run_of(infos())])[2]
    assert (wrong["p50_ms"], wrong["÷ best dense"]) == (1.0, None)


def test_an_axis_that_somebody_added_is_among_the_picks() -> None:
    (row,) = rows([run_of([timed(OURS, 64, 4, 1.0, picks={"order": "reversed", "kernel": "auto"})])])
    assert row["picks"] == "order=reversed kernel=auto"
    assert row["picks.kernel"] == "auto"


def test_what_the_first_half_alone_loses_is_no_quality_of_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {"output_error": 0.3, "kept_magnitude": 0.8, "kept_energy": 0.9}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(saved([checked(OURS, quality_of_half=half), checked(DENSE)])))
    assert main(["report", str(path), "--format", "json"]) == 0
    first, other = json.loads(capsys.readouterr().out)
    assert {name: first[f"quality_of_half.{name}"] for name in half} == half
    assert first["quality.output_error"] is first["loses.output_error"] is other["quality_of_half.output_error"] is None
    assert main(["report", str(path), "--format", "csv"]) == 0
    first, other = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["quality_of_half.output_error"], other["quality_of_half.output_error"]) == ("0.3", "")


def test_json_has_no_word_for_what_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    bad = checked(OURS, error_ratio=math.nan, max_error=math.inf)
    path.write_text(json.dumps(saved([bad, timed(DENSE, 64, 4, 1.0)])))
    assert main(["report", str(path), "--format", "json"]) == 1

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    first, _ = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (first["error_ratio"], first["max_error"], first["status"]) == (None, None, "wrong")
    assert main(["report", str(path), "--format", "csv"]) == 1
    first, _ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["error_ratio"], first["status"]) == ("nan", "wrong")
