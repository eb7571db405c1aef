"""The verdicts: is Block-Shock faster, against what, where, and how sure are we? To be slower is a result."""

from itertools import chain

import pytest

from blockshock.measure.timing import slowest
from blockshock.phases import compare
from blockshock.phases.hypotheses import Claim
from blockshock.plugin import Row, timed_alone
from blockshock.plugin.records import describe_verdict
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.settings import Settings


def _slowest(per_rank: list[list[list[float]]]) -> list[list[float]]:
    """Of each round of each block the time of the slowest rank."""
    return [slowest(list(block)) for block in zip(*per_rank, strict=True)]


@pytest.mark.bench
@timed_alone
def test_hypothesis(claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    if settings.timing == "none":
        pytest.skip("a verdict needs times: choose another --timing than none")
    rival, tried = rivals.fastest(claim.rivals, claim.case)
    blocks, found = {}, {}
    for name in claim.hypothesis.passes:
        pair = (claim.case, rival) if name == "training" else (claim.case.frozen, rival.frozen)
        found[name] = row.run(compare.PASSES[name], *pair, *settings.protocol, builds=3)
        timed = [result.blocks for result in found[name]]
        first, second = (_slowest([getattr(one, which) for one in timed]) for which in ("first", "second"))
        blocks[name] = {"first": first, "second": second, "pilot": timed[0].pilot, "repeated": timed[0].repeated}
    main = claim.hypothesis.passes[0]
    results, samples = found[main], list(chain.from_iterable(blocks[main]["first"]))
    info = describe_verdict(claim, rival, tried, blocks, results[0].algorithm, settings)
    row.save(1, claim.case, samples, info | row.limits(claim.case, results, samples, info))
