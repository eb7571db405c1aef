"""Phase 3: the training step; fifty steps beside dense ones, and single steps timed."""

import pytest

from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.phases import TRAINING, TRAJECTORY


@pytest.mark.correctness
def test_training_is_dense_equivalent(trajectory_case: Case, row: Row) -> None:
    row.measure(TRAJECTORY, trajectory_case)


@pytest.mark.bench
@timed_alone
def test_training_step(training_case: Case, row: Row) -> None:
    row.measure(TRAINING, training_case)
