"""Phase 4: whole networks with a row in the place of their linear layers: time, their layers' share of it, quality."""

import pytest

from blockshock.phases.case import Case
from blockshock.phases.claims import Claim
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import NETWORK
from blockshock.plugin.settings import Settings
from blockshock.plugin.verdicts import judge_network


@pytest.mark.bench
@pytest.mark.models
@timed_alone
def test_network(network_case: Case, row: Row) -> None:
    row.measure(NETWORK, network_case)


@pytest.mark.bench
@pytest.mark.models
@timed_alone
def test_network_hypothesis(network_claim: Claim, row: Row, settings: Settings) -> None:
    judge_network(network_claim, row, settings)
