"""A hypothesis at one point: its case and the fastest rival, timed in pairs on the ranks that the two take together."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from blockshock.measure import timing
from blockshock.phases import Claim, compare
from blockshock.plugin.records import describe_verdict
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.row import Row
from blockshock.plugin.settings import Settings


def judge(claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    """Find the rival, time the pairs, and save the verdict with all that it rests on. To be slower is a result."""
    if settings.timing == "none":
        pytest.skip("a verdict needs times: choose another --timing than none")
    rival, tried = rivals.fastest(claim.rivals, claim.case)
    blocks: dict[str, dict[str, Any]] = {}
    found: dict[str, list[compare.PairResult]] = {}
    for name in claim.hypothesis.passes:
        pair = (claim.case, rival) if name == "training" else (claim.case.frozen, rival.frozen)
        found[name] = row.run(compare.PASSES[name], *pair, *settings.protocol, builds=3)
        timed = [result.blocks for result in found[name]]
        first, second = (_slowest([getattr(one, which) for one in timed]) for which in ("first", "second"))
        blocks[name] = {"first": first, "second": second, "pilot": timed[0].pilot, "repeated": timed[0].repeated}
    main = claim.hypothesis.passes[0]
    results, samples = found[main], list(chain.from_iterable(blocks[main]["first"]))
    info = {"kind": "verdict", **describe_verdict(claim, rival, tried, blocks, results[0].algorithm, settings)}
    info |= row.limits(claim.case, results, samples, info) | row.quality(claim.case)
    row.save(1, claim.case, samples, info)


def _slowest(per_rank: list[list[list[float]]]) -> list[list[float]]:
    """Of each round of each block the time of the slowest rank."""
    return [timing.slowest(list(block)) for block in zip(*per_rank, strict=True)]
