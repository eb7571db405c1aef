"""Phase 1: how long does the forward pass take, in which stages, and how much memory?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock import memory, timing
from blockshock.collectives import aligner
from blockshock.methods import Method
from blockshock.phases.case import Built, Case, build
from blockshock.roofline import Work


@dataclass
class TimingResult:
    """What one rank measured. Times in seconds, sizes in bytes.

    Attributes:
        samples: of each round of what the phase times, in the mode asked for.
        eager_samples: the same by device events around eager calls; empty unless the mode is cuda_graph.
        stages, copied_bytes: from a second, instrumented series.
        alone: samples of pieces run by themselves: the rank's own ``partial`` and the collective that combines
            (phase 1, where there are both), the ``forward`` pass (phase 2).
        weight_bytes, estimated_weight_bytes: counted from storage, and by arithmetic.
        building_bytes, steady_bytes: memory held at most while building; and while running, weights included.
        algorithm: kernel and algorithm that ran.
        work: what the passes cannot avoid, by part.
    """

    samples: list[float]
    eager_samples: list[float]
    stages: dict[str, list[float]]
    copied_bytes: int
    alone: dict[str, list[float]]
    weight_bytes: int
    estimated_weight_bytes: int
    building_bytes: int
    steady_bytes: int
    algorithm: str
    work: dict[str, Work]


def forward_pass(case: Case, built: Built) -> timing.Call:
    """What this phase times."""
    return lambda: built.method(built.x_BK)


@torch.inference_mode()
def run(case: Case, mode: str, rounds: int, warmup: int, flush: bool) -> TimingResult:
    """Build and time the case on this rank; all ranks call it together."""
    built = build(case)
    device, method, call = built.x_BK.device, built.method, forward_pass(case, built)
    with memory.peak_bytes(device) as steady:
        call()
    protocol = timing.Protocol(mode, rounds, warmup, flush, aligner(device, built.group))
    samples = timing.time_call(call, device, protocol)
    eager = timing.Protocol("cuda_events", rounds, warmup, flush, protocol.align)
    stages = timing.time_stages(call, device, protocol)
    estimate = case.estimate(built.group.size())
    return TimingResult(
        samples=samples,
        eager_samples=timing.time_call(call, device, eager) if mode == "cuda_graph" else [],
        stages=stages.seconds,
        copied_bytes=stages.copied_bytes,
        alone=_alone(method, built.x_BK, protocol),
        weight_bytes=method.weight_bytes(),
        estimated_weight_bytes=estimate.steady,
        building_bytes=built.building_bytes,
        steady_bytes=method.weight_bytes() + steady[0],
        algorithm=method.algorithm,
        work=method.work(case.B),
    )


def _alone(method: Method, x_BK: torch.Tensor, protocol: timing.Protocol) -> dict[str, list[float]]:
    if type(method).combine is Method.combine or method.group.size() == 1 or protocol.mode == "none":
        return {}
    part = method.partial(x_BK).contiguous()
    return {
        "partial": timing.time_call(lambda: method.partial(x_BK), x_BK.device, protocol),
        "combine": timing.time_call(lambda: method.combine(part), x_BK.device, protocol),
    }
