"""The clocks: a machine that is suspended, a wall clock that is set; durations stay sound, and the results say so."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite
from reliability import Record
from rows import run_of, tables, timed

from blockshock.measure.timing import slowest
from blockshock.plugin.clock import VirtualClock
from blockshock.plugin.clockwatch import ClockWatch
from blockshock.report.comparison import comparison
from blockshock.report.remarks import remarks
from blockshock.saved.journal import FINISHED, next_journal, unfinished_below

pytestmark = pytest.mark.reliability

pytest_plugins = ["pytester"]


class Clocks:
    """The machine's clocks, and how far they are from where they would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = {time.CLOCK_REALTIME: 0.0, time.CLOCK_BOOTTIME: 0.0, time.CLOCK_MONOTONIC: 0.0}
        self._read = time.clock_gettime
        monkeypatch.setattr(time, "clock_gettime", lambda clock: self._read(clock) + self._ahead[clock])

    def set_wall_clock(self, seconds: float) -> None:
        self._ahead[time.CLOCK_REALTIME] += seconds

    def suspend(self, seconds: float) -> None:
        self._ahead[time.CLOCK_REALTIME] += seconds
        self._ahead[time.CLOCK_BOOTTIME] += seconds

    def run(self, seconds: float) -> None:
        for clock in self._ahead:
            self._ahead[clock] += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_what_happens_to_the_clocks_is_told(clocks: Clocks, injected: Record) -> None:
    watch = ClockWatch()
    clocks.run(1e6)
    clocks.set_wall_clock(0.5)
    assert watch.disturbance() is None, "slewing"
    clocks.suspend(3.2)
    assert watch.disturbance() == "the machine was suspended for 3.2 s"
    injected("machine suspended")
    clocks.set_wall_clock(-3600.5)
    assert watch.disturbance() == "the machine was suspended for 3.2 s, the wall clock stepped back by 3600.0 s"
    watch = ClockWatch()
    clocks.set_wall_clock(60)
    assert watch.disturbance() == "the wall clock stepped forward by 60.0 s"


def test_a_process_that_waits_between_two_readings_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter([0.0, 0.0, 50.0, 50.0] + [50.0] * 4 + [60.0] * 4)
    monkeypatch.setattr(time, "clock_gettime", lambda _: next(reads))
    assert ClockWatch().disturbance() is None
    assert next(reads, None) is None


def test_a_wall_clock_that_steps_back_flags_the_row_that_was_measured(
    pytester: pytest.Pytester, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, injected: Record
) -> None:
    class Midway:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
            if item.name.endswith("[1]"):
                clocks.set_wall_clock(-3600)
            return (yield)

    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)  # which takes a second
    light_suite(pytester.path)
    result = pytester.runpytest_inprocess(*LIGHT_OPTIONS, "--benchmark-save=run", plugins=[Midway()])
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["1 result was measured while the machine was suspended or its clock was set: †*"])
    (saved,) = Path("benchmark_results").glob("*/0001_run.json")
    rows = json.loads(saved.read_text())["benchmarks"]
    told = [row["extra_info"].get("clock") for row in rows]
    assert told == [None, "the wall clock stepped back by 3600.0 s", None]
    assert [row["stats"]["data"] for row in rows] == [[1e-3] * 400] * 3
    injected("wall clock steps back", lost=3 - len(rows))


def test_tables_mark_what_was_measured_then() -> None:
    clock = "the machine was suspended for 3.2 s"
    infos = [timed("dense_tp_row", 64, 4, 2.0, clock=clock), timed("block_shock auto", 64, 4, 1.0)]
    note = f"† {clock} during dense_tp_row N=64 K=64 B=4"
    (times,) = comparison(run_of(infos).records)
    assert [(row[0], row[3]) for row in times.rows] == [("block_shock auto", 0.5), ("dense_tp_row †", 1.0)]
    assert times.notes == ["best dense: dense_tp_row", note]
    speeds = tables(infos)["Time over the best dense"]
    assert [row[5] for row in speeds.rows] == ["block_shock auto", "dense_tp_row †"]
    assert note in speeds.notes
    assert next(remarks(run_of(infos))).startswith("1 result was measured while")
    assert list(remarks(run_of(infos[1:]))) == []


@pytest.mark.parametrize("seconds", [-1e-9, math.nan, math.inf])
def test_a_sample_that_is_no_duration_is_named(seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"round 1 of rank 0 took {seconds} s: the clock is not sound"):
        slowest([[0.1, seconds], [0.2, 0.3]])
    with pytest.raises(ValueError, match=f"round 0 of the samples took {seconds} s"):
        VirtualClock().replay(None, [seconds, 0.0])
    assert slowest([[0.1, 0.0], [0.2, 0.0]]) == [0.2, 0.0]


def test_the_last_journal_is_last_whatever_the_wall_clock_said(tmp_path: Path) -> None:
    told = {"machine_id": "here", "machine_info": {}, "commit_info": {}, "datetime": "", "version": ""}
    journals = [tmp_path / "journal" / "20300101_120000_99"]  # of a version that did not number them
    for name in ("20280101_120000_1", "20260101_120000_2", "20270101_120000_3"):
        journals.append(next_journal(tmp_path, name))
        for journal in journals[-2:]:
            journal.mkdir(parents=True, exist_ok=True)
            (journal / "session.json").write_text(json.dumps(told))
            (journal / "metrics.jsonl").write_text('{"benchmark": {}}')
    assert [journal.name[:5] for journal in journals] == ["20300", "0001_", "0002_", "0003_"]
    for journal in reversed(journals):
        assert unfinished_below(tmp_path)[0][0] == journal
        (journal / FINISHED).touch()
