"""The verdicts: is Block-Shock faster, against what, where, and how sure are we? To be slower is a result."""

import pytest

from blockshock.phases.claims import Claim
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.settings import Settings
from blockshock.plugin.verdicts import judge


@pytest.mark.bench
@timed_alone
def test_hypothesis(claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    judge(claim, row, rivals, settings)
