"""Phase 1: the forward pass, timed on the device of the slowest rank."""

import pytest

from blockshock.measure.timing import slowest
from blockshock.phases import forward
from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.records import describe_timing
from blockshock.plugin.settings import Settings


@pytest.mark.bench
@timed_alone
def test_forward(forward_case: Case, row: Row, settings: Settings) -> None:
    per_rank = row.run(forward.run, forward_case, *settings.protocol, builds=2)
    info = describe_timing(forward_case, settings, per_rank)
    samples = slowest([result.samples for result in per_rank])
    info |= row.limits(forward_case, per_rank, samples, info) | row.profile(1, forward_case)
    row.save(1, forward_case, samples, info)
