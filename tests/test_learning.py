"""Phase 5: what recipes of sparse training learn of a text and of images, step by step and second by second."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import CURVES


@pytest.mark.bench
@pytest.mark.learning
@timed_alone
def test_recipe_learns(curve_case: Case, row: Row) -> None:
    row.measure(CURVES, curve_case)
