"""Phase 1: the forward pass, timed on the device of the slowest rank."""

import os

import pytest

from blockshock.phases import forward
from blockshock.phases.case import Case
from blockshock.plugin import Row
from blockshock.plugin.options import Settings
from blockshock.plugin.records import describe_forward
from blockshock.timing import slowest

UNDER_XDIST = "PYTEST_XDIST_WORKER" in os.environ


@pytest.mark.bench
@pytest.mark.skipif(
    UNDER_XDIST, reason="timing beside other workers measures them too: run `pytest -m bench` without -n"
)
def test_forward(forward_case: Case, row: Row, settings: Settings) -> None:
    per_rank = row.run(forward.run, forward_case, settings.timing, settings.rounds, settings.warmup, settings.flush)
    info = describe_forward(forward_case, settings, per_rank)
    row.save(1, forward_case, slowest([result.samples for result in per_rank]), info)
