"""Phase 2: backward with frozen weights; grad_X against float64, and both passes timed."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import BACKWARD, GRADIENT


@pytest.mark.correctness
def test_gradient_is_right(gradient_case: Case, row: Row) -> None:
    row.measure(GRADIENT, gradient_case)


@pytest.mark.bench
@timed_alone
def test_backward(backward_case: Case, row: Row) -> None:
    row.measure(BACKWARD, backward_case)
