"""Two runs or more beside each other: what changed, how surely, and when that fails a session of CI."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT, python_path
from rows import Info, checked, run_of, saved, timed, verdict

from blockshock.__main__ import main
from blockshock.report.across import SAME, across, changes
from blockshock.report.slower import slower, untold
from blockshock.report.spreads import spreads
from blockshock.saved.results import Run

OURS, DENSE = "block_shock gathered 1100", "dense_single"


def of(*builds: tuple[float, ...], **machine: object) -> Run:
    """A run of as many benchmarks, each with the medians of its builds."""
    infos = [
        timed(OURS, 64 << place, 4, statistics.median(ms), builds_p50_ms=list(ms)) for place, ms in enumerate(builds)
    ]
    return run_of(infos, **machine)


def blocks(ratio: float, scatter: float = 0.001) -> Info:
    first = [[1e-3 * ratio * (1 + scatter * (-1) ** block)] for block in range(10)]
    return {"forward": {"first": first, "second": [[1e-3]] * 10, "pilot": 10}}


def write(folder: Path, name: str, infos: list[Info]) -> str:
    (folder / name).write_text(json.dumps(saved(infos)))
    return str(folder / name)


def test_each_is_set_beside_the_first_by_its_change_and_the_geometric_mean_is_last() -> None:
    before = of((1.0, 1.0, 1.0), (2.0, 2.01, 1.99), (4.0, 4.01, 3.99))
    table = across([before, of((0.5, 0.5, 0.5), (2.01, 2.0, 2.02), (6.0, 6.01, 5.99))])
    assert [column.name for column in table.columns] == ["benchmark", "before", "after", "change", "95 % interval"]
    assert [row[:4] for row in table.rows[:-1]] == [
        ("test[2]", 4.0, 6.0, pytest.approx(0.5)),
        ("test[1]", 2.0, 2.01, SAME),
        ("test[0]", 1.0, 0.5, pytest.approx(-0.5)),
    ]
    name, was, now, change, interval = table.rows[-1]
    assert (name, was, interval) == ("geomean", pytest.approx(2.0), None)
    assert now / was - 1 == pytest.approx(change) == pytest.approx((0.5 * 1.005 * 1.5) ** (1 / 3) - 1)


def test_the_interval_is_welchs_over_the_builds_around_what_is_shown() -> None:
    builds = (1.0, 1.02, 1.04), (1.1, 1.11, 1.15)
    (change,) = changes(of(builds[0]), of(builds[1])).values()
    logs = [[math.log(ms) for ms in one] for one in builds]
    parts = [statistics.variance(one) / 3 for one in logs]
    half = 3.182446 * math.sqrt(sum(parts))  # t of three degrees of freedom, which Welch's formula comes down to here
    assert int(sum(parts) ** 2 / sum(part**2 / 2 for part in parts)) == 3
    value = 1.11 / 1.02
    assert change.value == value
    assert change.ratio is not None
    assert [change.ratio.low, change.ratio.high] == pytest.approx([value * math.exp(-half), value * math.exp(half)])


def test_verdicts_are_compared_by_their_blocks_and_ratios_of_ratios_are_not() -> None:
    both = {"forward": blocks(0.9)["forward"], "training": blocks(1.0)["forward"]}
    runs = [
        run_of([verdict(OURS, blocks=blocks(ratio)), verdict(OURS, blocks=both, optimizer="sgd")])
        for ratio in (0.9, 0.99)
    ]
    (change,) = changes(*runs, judged=True).values()
    assert change.value == pytest.approx(1.1)
    assert change.ratio is not None
    assert 1.09 < change.ratio.low < 1.1 < change.ratio.high < 1.11
    assert across(runs, judged=True).title == "ratios of verdicts, run.json → run.json: 1 benchmark in all of them"


@pytest.mark.parametrize("builds", [None, [1.0]])
def test_without_builds_there_is_a_change_and_no_interval(builds: list[float] | None) -> None:
    run = run_of([timed(OURS, 64, 4, 1.0, builds_p50_ms=builds)])
    table = across([run, of((1.0, 1.1, 1.2))])
    assert table.rows[0][1:] == (1.0, 1.1, pytest.approx(0.1), None)
    assert table.notes == ["1 without an interval: a single build, or none, was saved"]


def test_what_only_one_has_and_what_differs_is_said() -> None:
    notes = across([of((1.0, 1.1), torch="2.11"), of((1.0, 1.1), (1.0, 1.1), torch="2.13")]).notes
    assert notes[3:] == ["1 only in run.json", "different: torch 2.11 (run.json) and 2.13 (run.json)"]


def test_slower_is_what_is_so_beyond_its_interval() -> None:
    before = of((1.0, 1.001, 0.999), (1.0, 1.5, 0.6))
    after = of((1.05, 1.051, 1.049), (1.3, 1.8, 0.9))
    assert slower([before, after], 0.03) == ["test[0] +5.0% in run.json"]
    assert slower([before, after], 0.10) == []


def test_of_a_single_build_slower_is_what_no_build_is_off() -> None:
    before, *after = (run_of([timed(OURS, 64, 4, ms)]) for ms in (1.0, 1.4, 3.0))
    assert slower([before, *after], 0.03) == ["test[0] +200.0% in run.json"]
    assert untold([before, *after]) == 2


@pytest.mark.parametrize(
    ("after", "allowed", "status"), [(1.05, "3%", 1), (1.05, "10%", 0), (1.0, "0.5%", 0), (0.5, "3%", 0)]
)
def test_a_slower_run_fails(
    after: float, allowed: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builds = [[ms * scale for scale in (1.0, 1.001, 0.999)] for ms in (1.0, after)]
    first, second = (
        write(tmp_path, f"{place}.json", [timed(OURS, 64, 4, ms[0], p95_ms=ms[1], builds_p50_ms=ms)])
        for place, ms in enumerate(builds)
    )
    assert main(["report", first, second, "--fail-if-slower", allowed]) == status
    out, err = capsys.readouterr()
    assert "geomean" in out
    assert ("test[0] +5.0% in 1.json" in err) == bool(status)


def test_what_cannot_be_judged_fails_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write(tmp_path, "bare.json", [timed(OURS, 64, 4, 1.0)])
    other = write(tmp_path, "other.json", [timed(OURS, 64, 4, 1.0)])
    assert main(["report", bare, "--fail-if-slower", "3%"]) == 1
    assert "compares two runs or more, and one run was read" in capsys.readouterr().err
    assert main(["report", bare, other, "--fail-if-slower", "3%"]) == 1
    assert "and no benchmark is in both with an interval that says something" in capsys.readouterr().err


def test_what_became_wrong_fails_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [timed(OURS, 64, 4, 1.0, p95_ms=1.0, builds_p50_ms=[1.0, 1.001, 0.999])]
    before = write(tmp_path, "before.json", [*rows, checked(OURS, 64, 4)])
    after = write(tmp_path, "after.json", [*rows, checked(OURS, 64, 4, status="wrong")])
    assert main(["report", before, before, after, "--fail-if-slower", "3%"]) == 1
    assert "WRONG, and compared with nothing" in capsys.readouterr().err
    assert main(["report", before, str(shutil.copy(before, tmp_path / "same.json")), "--fail-if-slower", "3%"]) == 0


def test_another_number_of_ranks_is_said_first_and_no_check_of_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sure: Info = {"p95_ms": 1.0, "builds_p50_ms": [1.0, 1.001, 0.999]}
    rows = [timed(OURS, 64, 4, 1.0, **sure), timed("dense_single", 64, 4, 1.0, **sure) | {"ranks": 1}]
    slow = [rows[0] | {"builds_p50_ms": [9.0, 9.001, 8.999], "p50_ms": 9.0, "ranks": 4}, rows[1]]
    two, four = (write(tmp_path, f"{n}.json", infos) for n, infos in ((2, rows), (4, slow)))
    assert main(["report", two, four]) == 0
    out = capsys.readouterr().out
    told = "ranks: 2 in 2.json, 4 in 4.json: 1 benchmark ran on unlike numbers, and changed by that too"
    assert 0 < out.index(told) < out.index("p50 in ms")
    assert "different: ranks 2 and 4" in out
    assert main(["report", two, four, "--fail-if-slower", "3%"]) == 1
    err = capsys.readouterr().err
    assert err == f"--fail-if-slower fails, whatever else it finds: {told}\n", "slower it is not called"
    same = [rows[0], slow[1] | {"ranks": 1}]
    assert main(["report", two, write(tmp_path, "same.json", same), "--fail-if-slower", "3%"]) == 0


def test_what_says_a_time_that_cannot_be_passes_no_check_of_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [timed(OURS, N, 4, 1.0, p95_ms=1.0, builds_p50_ms=[1.0, 1.001, 0.999]) for N in (64, 128)]
    before = write(tmp_path, "before.json", rows)
    after = write(tmp_path, "after.json", [rows[0], rows[1] | {"p50_ms": -1.0}])
    assert main(["report", before, after, "--fail-if-slower", "3%"]) == 1
    assert "after.json: left out: 1 result whose p50_ms is -1.0, and must be" in capsys.readouterr().err


def test_who_reads_a_part_of_it_is_no_error() -> None:
    run = ROOT / "benchmark_results" / "official" / "0011_1xH100-pruned"
    command = f"{sys.executable} -m blockshock report {run} --format json | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[\n", "")


@pytest.mark.parametrize("text", ["3", "0.03", "-3%", "many", "3%%", ""])
def test_a_share_that_is_none_is_an_error_that_says_what_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", "a.json", f"--fail-if-slower={text}"])
    assert end.value.code == 2
    assert f"takes a percentage such as 3% or 0.5%, got {text!r}" in capsys.readouterr().err


def test_the_spread_between_runs_stands_beside_each_use() -> None:
    runs = [
        run_of([row for N, ms in ((64, ours), (128, 1.0)) for row in (timed(OURS, N, 4, ms), timed(DENSE, N, 4, 2.0))])
        for ours in (1.0, 1.2)
    ]
    assert list(spreads(runs)) == [
        f"{OURS}, forward: time ÷ best dense 0.50 in run.json, 0.55 in run.json, over 2 points; at one point "
        "up to 20.0% apart"
    ]


def test_a_use_is_set_beside_itself_by_the_same_row_or_each_run_by_its_rows_name() -> None:
    """A run that measured another kernel says nothing of the first one's."""
    slow, dense = "block_shock cusparselt 1100", timed(DENSE, 64, 4, 2.0)
    both, one = (
        run_of([timed(OURS, 64, 4, 1.0), timed(slow, 64, 4, 2.5), dense]),
        run_of([timed(slow, 64, 4, 2.6), dense]),
    )
    assert list(spreads([both, one])) == [
        f"{slow}, forward: time ÷ best dense 1.25 in run.json (0.50 by its own fastest), 1.30 in run.json, over 1 "
        "point; at one point up to 4.0% apart"
    ]
    assert list(spreads([run_of([timed(OURS, 64, 4, 1.0), dense]), one])) == [
        f"block_shock, forward: time ÷ best dense 0.50 in run.json ({OURS}), 1.30 in run.json ({slow}), over 1 point; "
        "no row of it is in both"
    ]
    mixed = [timed(label, 128, 4, ms) for label, ms in ((OURS, 3.0), (slow, 2.0), (DENSE, 4.0))]
    fast = run_of([timed(OURS, 64, 4, 1.0), timed(slow, 64, 4, 2.5), dense, *mixed])
    assert list(spreads([fast, fast])) == [
        f"block_shock ({OURS} at 1, {slow} at 1), forward: time ÷ best dense 0.50 in run.json, 0.50 in run.json, over "
        "2 points; at one point up to 0.0% apart"
    ]


def test_three_runs_are_each_set_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write(tmp_path, f"{place}.json", [timed(OURS, 64, 4, ms)]) for place, ms in enumerate((1.0, 2.0, 3.0))]
    assert main(["report", *paths]) == 0
    out = capsys.readouterr().out
    changes: list[Any] = [line.split()[3] for line in out.splitlines() if line.startswith("test[0]")]
    assert changes == ["+100.0%", "+200.0%"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nothing_passes_where_a_run_cannot_be_read(
    place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [timed("dense_single", 64, 4, 1.0), timed(OURS, 64, 4, 1.0)]
    paths = [write(tmp_path, f"{number}.json", rows) for number in range(2)]
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    paths.insert(place, str(damaged))
    assert main(["report", *paths, "--fail-if-slower", "3%"]) == 1
    assert f"not compared, for a run cannot be read: {damaged}" in capsys.readouterr().err
    assert main(["report", *paths]) == 0
