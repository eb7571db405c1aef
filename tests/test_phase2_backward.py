"""Phase 2: backward with frozen weights; grad_X against float64, and both passes timed."""

import pytest

from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.measure.timing import slowest
from blockshock.phases import backward
from blockshock.phases.case import Case
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.records import describe_gradient, describe_timing
from blockshock.plugin.settings import Settings


@pytest.mark.correctness
def test_gradient_is_right(gradient_case: Case, row: Row) -> None:
    per_rank = row.run(backward.check, gradient_case, backward=True)
    by_loss = {
        loss: Accuracy.of(sum((result.errors[loss] for result in per_rank), ErrorSums()), per_rank[0].roundings)
        for loss in per_rank[0].errors
    }
    same_on_ranks = all(result.same_on_ranks for result in per_rank)
    same_again = all(result.same_again for result in per_rank)
    seconds = slowest([result.seconds for result in per_rank])
    failures = {loss: accuracy.failure() for loss, accuracy in by_loss.items()}
    row.judge(
        2,
        gradient_case,
        seconds,
        describe_gradient(by_loss, same_on_ranks, same_again, per_rank[0].algorithm),
        *(f"{loss}: {failure}" for loss, failure in failures.items() if failure is not None),
        None if same_on_ranks else "the ranks' gradients differ in their bits",
        None if same_again else "two runs with one seed differ in their bits",
    )


@pytest.mark.bench
@timed_alone
def test_backward(backward_case: Case, row: Row, settings: Settings) -> None:
    per_rank = row.run(backward.run, backward_case, *settings.protocol, backward=True, builds=2)
    info = describe_timing(backward_case, settings, per_rank, products=2)
    samples = slowest([result.samples for result in per_rank])
    info |= row.limits(backward_case, per_rank, samples, info) | row.profile(2, backward_case)
    row.save(2, backward_case, samples, info)
