"""Phase 0: every method against the float64 reference, between ranks, and between two runs with one seed."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row
from blockshock.plugin.phases import CORRECTNESS


@pytest.mark.correctness
def test_forward_is_right(correctness_case: Case, row: Row) -> None:
    row.measure(CORRECTNESS, correctness_case)
