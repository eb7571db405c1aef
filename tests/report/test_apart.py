"""Two runs on a screen: rows are told apart, those that did not change are counted, of two builds nothing is said."""

from __future__ import annotations

import statistics

import pytest
from rows import Info, run_of, timed, verdict

from blockshock.report import screen
from blockshock.report.across import FEW, SAME, UNDECIDED, across, changes
from blockshock.report.apart import told_apart
from blockshock.saved.run import Run

PICKS = "block_shock-cusparselt-tile_magnitude-compressed-adamw"


def named(infos: list[Info], names: list[str]) -> Run:
    run = run_of(infos)
    for record, name in zip(run.records, names, strict=True):
        record["name"] = name
    return run


def grid(scale: float = 1.0, builds: tuple[float, ...] = (1.0, 1.001, 0.999)) -> Run:
    """Long names that differ in their middle alone; of the first half of the points the times are scaled."""
    points = [(N, B) for N in (4096, 8192, 16384) for B in (16, 64, 256, 1024)]
    names = [f"test_training_step[{PICKS}-gaussian-N{N}-K{N}-B{B}-bf16]" for N, B in points]
    infos = []
    for place, (N, B) in enumerate(points):
        ms = [build * (scale if place < 6 else 1.0) for build in builds]
        infos.append(timed(PICKS.replace("-", " "), N, B, statistics.median(ms), builds_p50_ms=ms))
    return named(infos, names)


def test_names_say_what_differs_and_once_what_does_not() -> None:
    names = [f"test_{what}[a-gaussian-N64-K64-B{B}-bf16]" for what, B in (("forward", 4), ("backward", 8))]
    assert told_apart(names) == ("N64, a, gaussian, bf16", ["B4 forward", "B8 backward"])
    assert told_apart(names[:1]) == ("", names[:1])
    assert told_apart(["test[x-N64-K64]", "test[x-N64-K128]"]) == ("N64, test, x", ["K64", "K128"])
    common, short = told_apart(["test[x]", "test[x-y]"])
    assert (common, short) == ("test, x", ["test[x]", "y"]), "a name with nothing of its own stays whole"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_two_rows_look_alike_on_any_screen(width: int) -> None:
    lines = screen.of_runs([grid(), grid(1.5)], "", width)
    rows = [line.partition("  ")[0] for line in lines if "+50.0%" in line]
    assert len(rows) == len(set(rows)) == 6
    assert "all of these: training_step, block_shock, cusparselt, tile_magnitude" in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width


def test_a_name_that_is_too_long_goes_on_below_itself() -> None:
    infos = [timed("a", 64, 4, ms) for ms in (1.0, 1.0)]
    names = [f"test[{'-'.join(f'{word}{n}' for n in range(20))}]" for word in ("first", "second")]
    slow = named([info | {"p50_ms": 2.0} for info in infos], names)
    shown = " ".join(" ".join(screen.of_runs([named(infos, names), slow], "", 80)).split())
    assert "second0 second1" in shown
    assert "second19" in shown
    assert max(map(len, screen.of_runs([named(infos, names), slow], "", 80))) <= 80


def test_what_did_not_change_is_counted_in_a_line() -> None:
    lines = screen.of_runs([grid(), grid(1.5)], "", 120)
    assert "6 of 12 do not differ: --tables across has them" in lines
    assert not any(SAME in line.split()[-4:-2] for line in lines)
    alike = screen.of_runs([grid(), grid()], "", 120)
    assert "none of 12 differs, geomean +0.0%: --tables across has them" in alike
    assert not any(line.startswith(("benchmark", "geomean")) for line in alike)
    assert len(across([grid(), grid()]).rows) == 13, "the table has them"


def test_what_nobody_can_tell_is_counted_apart() -> None:
    few = grid(builds=(1.0, 1.4))
    assert "12 of 12 undecided, geomean +0.0%: --tables across has them" in screen.of_runs([few, few], "", 120)
    infos = [[record["extra_info"] for record in run.records] for run in (grid(), few)]
    names = [record["name"] for record in few.records]
    mixed = named([*infos[0][:8], *infos[1][8:]], names)
    lines = screen.of_runs([grid(), mixed], "", 120)
    assert "8 of 12 do not differ, 4 of 12 undecided, geomean +6.3%: --tables across has them" in lines
    slow = named([*(record["extra_info"] for record in grid(1.5).records[:8]), *infos[1][8:]], names)
    lines = screen.of_runs([grid(), slow], "", 120)
    assert "2 of 12 do not differ, 4 of 12 undecided: --tables across has them" in lines
    assert not any(UNDECIDED in line.split() for line in lines), "counted, and not listed among the changes"


def test_the_same_number_without_an_interval_is_no_change() -> None:
    runs = [run_of([timed("a", 64, 4, 1.0)]) for _ in range(2)]
    assert [row[3] for row in across(runs).rows[:-1]] == [SAME]
    assert "none of 1 differs" in " ".join(screen.of_runs(runs, ""))


def test_of_two_builds_there_is_no_interval_to_show() -> None:
    before, after = grid(builds=(1.0, 1.02)), grid(1.5, builds=(1.0, 1.05))
    table = across([before, after])
    assert {row[4] for row in table.rows[:-1]} == {FEW}
    assert f"{FEW}: 12 with fewer than 3, whose interval is too wide to show" in table.notes
    assert not any("%" in str(row[4]) for row in table.rows)
    assert all(change.few for change in changes(before, after).values())
    three = across([grid(), grid(1.5)])
    assert all("% to " in str(row[4]) for row in three.rows[:-1])
    blocks = {"forward": {"first": [[1e-3], [1.1e-3]], "second": [[1e-3]] * 2, "pilot": 2}}
    judged = [run_of([verdict("a", blocks=blocks)]) for _ in range(2)]
    assert across(judged, judged=True).rows[0][4] == FEW


def test_a_column_without_an_interval_is_left_out_on_a_screen() -> None:
    runs = [run_of([timed("a", 64, 4, ms)]) for ms in (1.0, 2.0)]
    assert "95 % interval" not in " ".join(screen.of_runs(runs, ""))
    assert "95 % interval" in " ".join(screen.of_runs([grid(), grid(1.5)], ""))
