"""The verdicts: is Block-Shock faster, against what, where, and how sure are we? A rejected hypothesis is a result."""

import pytest

from blockshock.hypotheses import Claim
from blockshock.pairs import change_of, ratio_of
from blockshock.phases import compare
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.records import describe_verdict
from blockshock.plugin.settings import Settings
from blockshock.timing import slowest

Pair = tuple[list[float], list[float]]


def _pair(results: list[compare.PairResult]) -> Pair:
    return slowest([result.first for result in results]), slowest([result.second for result in results])


@pytest.mark.bench
@timed_alone
def test_hypothesis(claim: Claim, row: Row, settings: Settings) -> None:
    if settings.timing == "none":
        pytest.skip("a verdict needs times: choose another --timing than none")
    results = row.run(compare.forward, claim.case.frozen, claim.rival.frozen, *settings.protocol)
    forward = _pair(results)
    ratio = ratio_of(*forward, seed=settings.seed)
    if claim.hypothesis.training:
        training = _pair(row.run(compare.training, claim.case, claim.rival, *settings.protocol))
        ratio = change_of(training, forward, seed=settings.seed)
    info = describe_verdict(claim, ratio, results[0].algorithm)
    row.save(1, claim.case, forward[0], info | row.limits(claim.case, results, forward[0], info))
