"""Changes from run to run of which an interval cannot say whether there is one: no absence of a change, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from rows import timed
from test_across import OURS, of, write

from blockshock.__main__ import main
from blockshock.report.across import SAME, UNDECIDED, across, changes

FEW_BUILDS, WIDE_APART = (0.5, 0.65), (1.0, 1.9, 0.6)


@pytest.mark.parametrize("builds", [FEW_BUILDS, WIDE_APART])
def test_what_an_interval_cannot_tell_is_undecided_and_no_absence_of_a_change(builds: tuple[float, ...]) -> None:
    """Were it 2.4 times slower: of two builds, or of three far apart, one lies in the interval all the same."""
    before, after = of(builds), of((*(2.4 * ms for ms in builds[:-1]), builds[-1]))
    (change,) = changes(before, after).values()
    assert change.value > 1.4
    assert not change.differs
    assert change.undecided
    table = across([before, after])
    assert table.rows[0][3] == UNDECIDED != SAME
    (note,) = (note for note in table.notes if note.startswith(f"{UNDECIDED}: "))
    told = "of fewer than 3 builds' medians, or its ends a factor of more than 1.5 apart"
    assert note == f"?: 1 undecided: no change lies in an interval that says nothing, {told}"
    sure = across([of((1.0, 1.001, 0.999)), of((1.001, 1.0, 0.999))])
    assert sure.rows[0][3] == SAME
    assert not any(note.startswith(UNDECIDED) for note in sure.notes)


def test_what_few_builds_tell_even_so_is_a_change() -> None:
    (change,) = changes(of((1.0, 1.001)), of((1.5, 1.501))).values()
    assert change.few
    assert change.differs
    assert not change.undecided


def test_undecided_is_no_passed_check_of_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [[ms * scale for scale in (1.0, 1.4)] for ms in (1.0, 2.4)]
    sure = [1.0, 1.001, 0.999]
    for others, status in ([], 1), ([timed(OURS, 128, 4, 1.0, p95_ms=1.0, builds_p50_ms=sure)], 0):
        before, after = (
            write(tmp_path, f"{place}.json", [timed(OURS, 64, 4, ms[0] * 1.2, p95_ms=ms[1], builds_p50_ms=ms), *others])
            for place, ms in enumerate(few)
        )
        assert main(["report", before, after, "--fail-if-slower", "3%"]) == status
        err = capsys.readouterr().err
        assert "undecided, and no check of speed: 1 change, of one build or few, or with too wide an interval" in err
