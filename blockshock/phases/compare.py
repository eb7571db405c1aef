"""Two cases on one set of ranks, timed in pairs: rounds of the two alternate, in random order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from blockshock import timing
from blockshock.collectives import aligner
from blockshock.phases.case import Built, Case, build
from blockshock.phases.forward import forward_pass
from blockshock.phases.train import Step
from blockshock.roofline import Work


@dataclass
class PairResult:
    """What one rank measured: seconds of each round of the two, by round.

    Attributes:
        algorithm, work: of the first: the kernel and algorithm that ran, and what a forward pass cannot avoid.
    """

    first: list[float]
    second: list[float]
    algorithm: str
    work: dict[str, Work]


@torch.inference_mode()
def forward(first: Case, second: Case, mode: str, rounds: int, warmup: int, flush: bool) -> PairResult:
    """Forward passes of two cases; all ranks call it together."""
    return _timed(first, second, forward_pass, mode, rounds, warmup, flush)


def training(first: Case, second: Case, mode: str, rounds: int, warmup: int, flush: bool) -> PairResult:
    """Training steps of two cases; all ranks call it together."""
    return _timed(first, second, Step, mode, rounds, warmup, flush)


def _timed(
    first: Case,
    second: Case,
    prepare: Callable[[Case, Built], timing.Call],
    mode: str,
    rounds: int,
    warmup: int,
    flush: bool,
) -> PairResult:
    pair = [build(case) for case in (first, second)]
    calls = [prepare(case, built) for case, built in zip((first, second), pair, strict=True)]
    device = pair[0].x_BK.device
    protocol = timing.Protocol(mode, rounds, warmup, flush, aligner(device, pair[0].group))
    times = timing.time_calls(calls, device, protocol, first.seed)
    method = pair[0].method
    return PairResult(times[0], times[1], method.algorithm, method.work(first.B))
