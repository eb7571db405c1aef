"""Builds as what is repeated, not rounds alone.

All rounds of one build share where its memory lies, and those of one capture how its graph was laid out. A median over
rounds of several builds tells of the method, one over rounds of a single build of that build. So what else is measured
of one build takes no more rounds than its share. What is kept of W is no part of that: the builds of a frozen case
prune once.

A build is let go only once the next one stands, so that the next one lies elsewhere. And each capture gives back to the
GPU what torch keeps (``torch.cuda.graph`` does): or the builds of a pair would go to and fro between the same places,
and what is compared with itself would differ by these.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from blockshock.machine import aligner, slowest_of_ranks
from blockshock.measure import timing
from blockshock.phases.case import Built, Case, build, this_device
from blockshock.saved.pairs import blocks_needed

BUILDS = {"cuda": 3, "cpu": 2}
"""Of a case that is timed by itself; they share its rounds, and those before them."""
BLOCKS = {"cuda": 10, "cpu": 5}
"""Of a pair, for a start: in each block both cases are built anew."""
MOST_BLOCKS = {"cuda": 60, "cpu": 5}
"""Of a pair whose blocks scatter."""
DISTURBED = 1.5
"""Times what a call takes in the other blocks is no build's doing: those lie within a few per cent of each other."""
MOST_REPEATED = {"cuda": 10, "cpu": 0}
"""Blocks of a pair that are measured again because something else had the machine: on a CPU that is no exception."""
BLOCK_SHARE = 5
"""A block has one of so many parts of the rounds that are asked for, and of those before them."""

Prepare = Callable[[Case, Built], timing.Call]
"""What is timed of a built case."""


Samples = tuple[list[list[float]], list[list[float]]]
"""Seconds of each round by block, of the first and of the second of a pair."""


class OverBuilds(Protocol):
    """A result that keeps the samples of each build."""

    builds: list[list[float]]


Result = TypeVar("Result", bound=OverBuilds)
Made = TypeVar("Made")


def protocol_of_ranks(mode: str, rounds: int, warmup: int, flush: bool) -> timing.Protocol:
    """How all ranks together time a call on their devices."""
    return timing.Protocol(mode, rounds, warmup, flush, aligner(this_device(), dist.group.WORLD))


def over_builds(
    make: Callable[[], Made],
    protocol: timing.Protocol,
    describe: Callable[[Made, timing.Protocol], Result],
    take: Callable[[Made, timing.Protocol], list[float]],
) -> Result:
    """What ``describe`` finds of the first build, and in its ``builds`` what ``take`` measures of each.

    The rounds are shared out among the builds as evenly as can be; both are given the share of theirs. All ranks call
    it together.
    """
    count = 1 if protocol.mode == "none" else min(BUILDS[this_device().type], protocol.rounds)
    warmup, result = -(-protocol.warmup // count), None
    for number in range(count):
        built, share = make(), replace(protocol, rounds=len(range(number, protocol.rounds, count)), warmup=warmup)
        if result is None:
            result = describe(built, share)
        result.builds.append(take(built, share))
    assert result is not None
    return result


@dataclass
class PairBlocks:
    """Seconds of each round of two cases, by block, on this rank.

    Attributes:
        pilot: how many of the blocks, the first ones, told how many it takes.
        repeated: how many were measured again, for they were disturbed.
    """

    first: list[list[float]]
    second: list[list[float]]
    pilot: int
    repeated: int


def in_blocks(
    cases: tuple[Case, Case], prepare: tuple[Prepare, Prepare], protocol: timing.Protocol
) -> tuple[PairBlocks, Built]:
    """The two cases timed in blocks, and the last build of the first. All ranks call it together.

    Args:
        protocol: of a whole case; a block has a share of it.
    """
    stream = random.Random(f"{cases[0].id} {cases[1].id} {cases[0].seed}")
    layers = [case.layer(this_device()) if case.training is None else None for case in cases]
    (blocks,), built = pairs_in_blocks(
        lambda index: build(cases[index], layer=layers[index]),
        lambda index, built: (prepare[index](cases[index], built),),
        stream,
        protocol,
    )
    return blocks, built


def pairs_in_blocks(
    make: Callable[[int], Made],
    calls: Callable[[int, Made], Sequence[timing.Call]],
    stream: random.Random,
    protocol: timing.Protocol,
) -> tuple[list[PairBlocks], Made]:
    """The calls of two builds, the first's beside their likes of the second, and the last build of the first.

    The two take turns in being captured and timed first, from block to block and from round to round. Which is built
    first is drawn anew for each block, the same on all ranks: a new build takes the place of the one that was let go
    last, and were turns taken in that too, each of the two would keep to two of three places in memory, one of them its
    own: a small difference, but in all blocks alike. All ranks call it together.

    Args:
        make: builds the first (0) or the second (1) anew.
        calls: what is timed of a build: as many of each.
    """
    device = this_device()
    share = replace(protocol, rounds=-(-protocol.rounds // BLOCK_SHARE), warmup=-(-protocol.warmup // BLOCK_SHARE))
    built: dict[int, Made] = {}
    pairs: list[Samples] = []
    pilot = wanted = BLOCKS[device.type]
    count = repeated = 0
    piloting = protocol.mode != "none"
    while count < wanted:
        for index in stream.sample((0, 1), 2):
            built[index] = make(index)
        # The calls, and the graphs captured of them, end with this: they hold the builds.
        timed = _one_block(calls, built, device, share, (0, 1) if count % 2 else (1, 0))
        pairs = pairs or [([], []) for _ in timed]
        for (first, second), (ours, theirs) in zip(pairs, timed, strict=True):
            first.append(ours)
            second.append(theirs)
        count += 1
        if count < wanted or protocol.mode == "none":
            continue
        slowest = [_slowest_of_ranks(samples, device) for samples in pairs]
        again = sorted({number for samples in slowest for number in disturbed(samples)})
        again = again[: MOST_REPEATED[device.type] - repeated]
        if again:
            repeated, count = repeated + len(again), count - len(again)
            pairs = [(_without(first, again), _without(second, again)) for first, second in pairs]
        elif piloting:
            needed = max(blocks_needed(*samples) for samples in slowest)
            piloting, wanted = False, min(needed, MOST_BLOCKS[device.type])
    return [PairBlocks(*samples, pilot, repeated) for samples in pairs], built[0]


def _one_block(
    calls: Callable[[int, Made], Sequence[timing.Call]],
    built: dict[int, Made],
    device: torch.device,
    share: timing.Protocol,
    order: tuple[int, int],
) -> list[tuple[list[float], list[float]]]:
    """Seconds of each round, of each call of the first and of its like of the second."""
    both = list(zip(*(calls(index, built[index]) for index in (0, 1)), strict=True))
    turns = [2 * number + index for number in range(len(both)) for index in order]
    times = timing.time_calls([call for pair in both for call in pair], device, share, turns)
    return list(zip(times[::2], times[1::2], strict=True))


def _without(blocks: list[list[float]], numbers: Collection[int]) -> list[list[float]]:
    return [one for number, one in enumerate(blocks) if number not in numbers]


def disturbed(samples: Samples) -> list[int]:
    """The blocks in which a call took far longer than in the others: for a while the machine was not ours.

    Of the two calls alike, and by how long they took, not by their ratio: what is left is no verdict's choice.
    """
    medians = [[statistics.median(block) for block in blocks] for blocks in samples]
    usual = [statistics.median(times) for times in medians]
    return [
        number
        for number, times in enumerate(zip(*medians, strict=True))
        if any(time > DISTURBED * other for time, other in zip(times, usual, strict=True))
    ]


def _slowest_of_ranks(samples: Samples, device: torch.device) -> Samples:
    """The samples of the slowest rank, the same on every rank."""
    sizes = [len(block) for blocks in samples for block in blocks]
    times = iter(slowest_of_ranks(list(chain.from_iterable(chain(*samples))), device, dist.group.WORLD))
    blocks = [list(islice(times, size)) for size in sizes]
    return blocks[: len(samples[0])], blocks[len(samples[0]) :]
