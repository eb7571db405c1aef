"""A hypothesis at one point: its case and the fastest rival, timed in pairs on the ranks that the two take together."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from blockshock.measure import timing
from blockshock.phases import Claim, compare, ffn, ffn_step, network, network_pairs
from blockshock.phases.builds import PairBlocks
from blockshock.phases.case import MOST_HELD
from blockshock.plugin.records import describe_verdict
from blockshock.plugin.rivals import Rivals
from blockshock.plugin.row import Row
from blockshock.plugin.settings import Settings

Blocks = dict[str, dict[str, Any]]
"""By pass, as they are saved."""


def judge(claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    """Find the rival, time the pairs, and save the verdict with all that it rests on. To be slower is a result."""
    _needs_times(settings)
    rival, tried = rivals.fastest(claim.rivals, claim.case)
    blocks: Blocks = {}
    found: dict[str, list[compare.PairResult]] = {}
    for name in claim.hypothesis.passes:
        pair = (claim.case, rival) if name == "training" else (claim.case.frozen, rival.frozen)
        found[name] = row.run(compare.PASSES[name], *pair, *settings.protocol, builds=MOST_HELD)
        blocks[name] = _both([result.blocks for result in found[name]])
    main = claim.hypothesis.passes[0]
    results, samples = found[main], list(chain.from_iterable(blocks[main]["first"]))
    info = {"kind": "verdict", **describe_verdict(claim, rival, tried, blocks, results[0].algorithm, settings)}
    info |= row.limits(claim.case, results, samples, info) | row.quality(claim.case)
    row.save(1, claim.case, samples, info)


def judge_block(claim: Claim, row: Row, rivals: Rivals, settings: Settings) -> None:
    """The same of a row in a feed-forward block, whose rival is the faster of the dense block eager and compiled."""
    _needs_times(settings)
    rival, tried = rivals.fastest(claim.rivals, claim.case, ffn_step.one_build, ffn.obstacle)
    per_rank: list[compare.PairResult] = row.run(
        ffn_step.pair, claim.case, rival, *settings.protocol, builds=MOST_HELD, obstacle=ffn.obstacle
    )
    blocks = {"ffn": _both([result.blocks for result in per_rank])}
    samples = list(chain.from_iterable(blocks["ffn"]["first"]))
    info = {"kind": "verdict", **describe_verdict(claim, rival, tried, blocks, per_rank[0].algorithm, settings)}
    row.save(6, claim.case, samples, info | row.limits(claim.case, per_rank, samples, info))


def judge_network(claim: Claim, row: Row, settings: Settings) -> None:
    """The same of a row in a whole network, whose rival is the network as it is."""
    _needs_times(settings)
    (rival,) = claim.rivals
    known, arguments = row.likeness(claim.case), (claim.case, rival, *settings.protocol)
    per_rank: list[network_pairs.NetworkPair] = row.run(
        network_pairs.run, *arguments, known is None, builds=MOST_HELD, obstacle=network.obstacle
    )
    blocks = {name: _both([result.blocks[name] for result in per_rank]) for name in per_rank[0].blocks}
    info = {"kind": "verdict", **describe_verdict(claim, rival, {}, blocks, per_rank[0].algorithm, settings)}
    info |= {"network": claim.case.workload, "likeness": known or per_rank[0].likeness}
    row.save(4, claim.case, list(chain.from_iterable(blocks["network"]["first"])), info)


def _needs_times(settings: Settings) -> None:
    if settings.timing == "none":
        pytest.skip("a verdict needs times: choose another --timing than none")


def _both(per_rank: list[PairBlocks]) -> dict[str, Any]:
    """The blocks of a pair as they are saved: of each round the time of the slowest rank."""
    first, second = (_slowest([getattr(one, which) for one in per_rank]) for which in ("first", "second"))
    return {"first": first, "second": second, "pilot": per_rank[0].pilot, "repeated": per_rank[0].repeated}


def _slowest(per_rank: list[list[list[float]]]) -> list[list[float]]:
    """Of each round of each block the time of the slowest rank."""
    return [timing.slowest(list(block)) for block in zip(*per_rank, strict=True)]
