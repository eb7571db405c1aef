"""Phase 0: every method against the float64 reference, between ranks, and between two runs with one seed."""

import pytest

from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.measure.timing import slowest
from blockshock.phases import correctness
from blockshock.phases.case import Case
from blockshock.plugin import Row
from blockshock.plugin.records import describe_accuracy


@pytest.mark.correctness
def test_forward_is_right(correctness_case: Case, row: Row) -> None:
    per_rank = row.run(correctness.run, correctness_case)
    accuracy = Accuracy.of(sum((result.errors for result in per_rank), ErrorSums()), per_rank[0].roundings)
    same_on_ranks = all(result.same_on_ranks for result in per_rank)
    same_again = all(result.same_again for result in per_rank)
    info = describe_accuracy(accuracy, same_on_ranks, same_again, per_rank[0].algorithm)
    row.judge(
        0,
        correctness_case,
        slowest([result.seconds for result in per_rank]),
        info,
        accuracy.failure(),
        None if same_on_ranks else "the ranks' outputs differ in their bits",
        None if same_again else "two runs with one seed differ in their bits",
    )
