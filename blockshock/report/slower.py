"""``--fail-if-slower``: whether a later run is slower than the first, in words and as a status."""

from __future__ import annotations

import sys

from blockshock.report.across import slower, surely, unlike, untold
from blockshock.report.remarks import left_out
from blockshock.saved import Run, faults, several


def unsure(runs: list[Run]) -> bool:
    """Whether something is in the runs of which nothing can say that it became no slower; says so, before all else."""
    reasons = [f"{run.name}: {why}" for run in runs if run.odd for why in left_out(run)]
    if (told := unlike(runs)) is not None:
        reasons.append(told)
    for why in reasons:
        print(f"--fail-if-slower fails, whatever else it finds: {why}", file=sys.stderr)
    return bool(reasons)


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
