"""``--fail-if-slower``: whether a later run is slower than the first, in words and as a status."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from blockshock.report.across import UNITS, Change, changes, other_rivals, unlike
from blockshock.report.remarks import left_out
from blockshock.saved import Run, faults, is_timed, several
from blockshock.saved.pairs import WIDE


def unsure(runs: list[Run]) -> bool:
    """Whether something is in the runs of which nothing can say that it became no slower; says so, before all else."""
    reasons = [f"{run.name}: {why}" for run in runs if run.odd for why in left_out(run)]
    reasons += [*unlike(runs), *missing(runs)]
    for why in reasons:
        print(f"--fail-if-slower fails, whatever else it finds: {why}", file=sys.stderr)
    return bool(reasons)


def missing(runs: list[Run]) -> Iterator[str]:
    """How many benchmarks and verdicts of the first run each of the others has none of."""
    for run in runs[1:]:
        there = {record["name"] for record in run.records}
        measured = [one["name"] for one in runs[0].records if is_timed(one) or "verdict" in one["extra_info"]]
        if gone := [name for name in measured if name not in there]:
            what = several(len(gone), f"benchmark of {runs[0].name} is", f"benchmarks of {runs[0].name} are")
            yield f"{what} not in {run.name}, {gone[0]}{' first' if len(gone) > 1 else ''}"


def failed(runs: list[Run], share: float) -> bool:
    """Whether something became slower than that or wrong, or nothing says whether it did; says so."""
    wrong = [
        f"{run.name}: {record['name']}"
        for run in runs[1:]
        for record in run.records
        if record["extra_info"].get("wrong") or faults(record["extra_info"])
    ]
    if wrong:
        print(f"WRONG, and compared with nothing: {len(wrong)}", *wrong, sep="\n  ", file=sys.stderr)
    if undecided := untold(runs):
        what = several(undecided, "change")
        print(
            f"undecided, and no check of speed: {what}, of one build or few, or with too wide an interval",
            file=sys.stderr,
        )
    if others := sum(len(other_rivals(runs[0], run)) for run in runs[1:]):
        what = several(others, "verdict")
        print(f"not compared, and no check of speed: {what}, each of another rival than before", file=sys.stderr)
    if len(runs) < 2 or not surely(runs):
        why = "one run was read" if len(runs) < 2 else "no benchmark is in both with an interval that says something"
        print(f"--fail-if-slower compares two runs or more, and {why}", file=sys.stderr)
        return True
    found = slower(runs, share)
    if found:
        print(
            f"slower by more than {share:.1%}, beyond the interval: {len(found)}", *found, sep="\n  ", file=sys.stderr
        )
    return bool(found or wrong)


def slower(runs: list[Run], share: float) -> list[str]:
    """The benchmarks and verdicts of the runs after the first that are slower by more than that share beyond doubt:
    all of their interval is, measured alike; of a single build, which has none, by a factor that no build is off."""
    found = []
    for run, name, change in _measured_alike(runs):
        least = change.value / WIDE if change.ratio is None else change.ratio.low
        if least > 1 + share:
            found.append(f"{name} {change.value - 1:+.1%} in {run.name}")
    return found


def untold(runs: list[Run]) -> int:
    """How many changes are undecided, or have no interval, of what was measured alike."""
    return sum(change.undecided or change.ratio is None for *_, change in _measured_alike(runs))


def surely(runs: list[Run]) -> int:
    """How many changes have an interval that says something, of what was measured alike."""
    return sum(change.ratio is not None and not change.undecided for *_, change in _measured_alike(runs))


def _measured_alike(runs: list[Run]) -> Iterator[tuple[Run, str, Change]]:
    """Of each run after the first its changes, with what changed: those that were measured in the same way."""
    for run in runs[1:]:
        for judged in UNITS:
            for name, change in changes(runs[0], run, judged).items():
                if not change.unlike:
                    yield run, name, change
