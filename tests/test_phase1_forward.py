"""Phase 1: the forward pass, timed on the device of the slowest rank."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import FORWARD


@pytest.mark.bench
@timed_alone
def test_forward(forward_case: Case, row: Row) -> None:
    row.measure(FORWARD, forward_case)
