"""Two cases on one set of ranks, timed in pairs: block by block built anew, in a block round by round in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.measure import Work, timing
from blockshock.phases.builds import BLOCK_SHARE, PairBlocks, Prepare, in_blocks, protocol_of_ranks
from blockshock.phases.case import Case, build
from blockshock.phases.forward import forward_pass
from blockshock.phases.train import Step, work_of_step

FEWEST_ROUNDS = 3
"""Of a median that only picks one of several."""


@dataclass
class PairResult:
    """What one rank measured.

    Attributes:
        algorithm, work: of the first: the kernel and algorithm that ran, and what it cannot avoid.
    """

    blocks: PairBlocks
    algorithm: str
    work: dict[str, Work]


@torch.inference_mode()
def forward(first: Case, second: Case, mode: str, rounds: int, warmup: int, flush: bool) -> PairResult:
    """Forward passes of two cases; all ranks call it together."""
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)
    blocks, built = in_blocks((first, second), (forward_pass, forward_pass), protocol)
    return PairResult(blocks, built.method.algorithm, built.method.work(first.B))


def training(first: Case, second: Case, mode: str, rounds: int, warmup: int, flush: bool) -> PairResult:
    """Training steps of two cases; all ranks call it together."""
    blocks, built = in_blocks((first, second), (Step, Step), protocol_of_ranks(mode, rounds, warmup, flush))
    return PairResult(blocks, built.method.algorithm, work_of_step(first, built.method))


PASSES = {"forward": forward, "training": training}
"""What pairs are timed of."""


def one_build(case: Case, mode: str, rounds: int, warmup: int, flush: bool) -> list[float]:
    """Seconds of a few rounds of one build, to tell the fast from the slow: of a step where the case is trained."""
    with torch.inference_mode(case.optimizer is None):
        prepare: Prepare = forward_pass if case.optimizer is None else Step
        protocol = protocol_of_ranks(mode, max(rounds // BLOCK_SHARE, FEWEST_ROUNDS), warmup, flush)
        built = build(case)
        return timing.time_call(prepare(case, built), built.x_BK.device, protocol)
