"""Phase 6: feed-forward blocks with 2:4 activations or weights beside the best dense ones: are they right, and fast?"""

import pytest

from blockshock.phases.case import Case
from blockshock.phases.claims import Claim
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import BLOCK, BLOCK_CHECK
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.settings import Settings
from blockshock.plugin.verdicts import judge_block


@pytest.mark.correctness
def test_block_is_what_its_recipe_says(checked_block: Case, row: Row) -> None:
    row.measure(BLOCK_CHECK, checked_block)


@pytest.mark.bench
@timed_alone
def test_block(block_case: Case, row: Row) -> None:
    row.measure(BLOCK, block_case)


@pytest.mark.bench
@timed_alone
def test_block_hypothesis(block_claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    judge_block(block_claim, row, rivals, settings)
