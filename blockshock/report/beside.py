"""What several runs say together: each beside the first, and how time grows with the number of ranks."""

from __future__ import annotations

from blockshock.report.across import UNITS, across
from blockshock.report.growth import ACROSS, growth_in_ranks
from blockshock.report.tables import Table
from blockshock.saved import Run

__all__ = ["ACROSS", "beside"]


def beside(runs: list[Run]) -> list[Table]:
    """Tables of two runs or more, none of fewer: of times and of verdicts, as far as runs share any, and of ranks."""
    if len(runs) < 2:
        return []
    found = [across([runs[0], run], judged) for run in runs[1:] for judged in UNITS]
    return [*([table for table in found if table.rows] or found[:1]), *growth_in_ranks(runs)]
