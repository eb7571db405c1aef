"""Phase 4: whole networks with a row in the place of their linear layers: time, their layers' share of it, quality."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import NETWORK


@pytest.mark.bench
@pytest.mark.models
@timed_alone
def test_network(network_case: Case, row: Row) -> None:
    row.measure(NETWORK, network_case)
