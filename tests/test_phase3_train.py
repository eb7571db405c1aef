"""Phase 3: the training step; fifty steps beside dense ones, and single steps timed."""

import pytest

from blockshock.measure.timing import slowest
from blockshock.phases import train, trajectory
from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.records import describe_training, describe_trajectory
from blockshock.plugin.settings import Settings


@pytest.mark.correctness
def test_training_is_dense_equivalent(trajectory_case: Case, row: Row) -> None:
    result, *others = row.run(trajectory.run, trajectory_case)
    same = all(other == result for other in others)
    differ = None if same else "the ranks went different ways"
    row.judge(3, trajectory_case, [], describe_trajectory(result), result.failure(), differ)


@pytest.mark.bench
@timed_alone
def test_training_step(training_case: Case, row: Row, settings: Settings) -> None:
    per_rank = row.run(train.run, training_case, *settings.protocol, builds=2)
    info = describe_training(training_case, settings, per_rank)
    samples = slowest([result.samples for result in per_rank])
    info |= row.limits(training_case, per_rank, samples, info) | row.profile(3, training_case)
    row.save(3, training_case, samples, info)
