"""Phase 1: how long does the forward pass take, in which stages, and how much memory?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from blockshock.machine import Exit, Part, memory
from blockshock.measure import Work, timing
from blockshock.methods import Method
from blockshock.phases.builds import Prepare, over_builds, protocol_of_ranks
from blockshock.phases.case import Built, Case, build, this_device
from blockshock.phases.stage_times import StageTimes, time_stages


@dataclass
class TimingResult:
    """What one rank measured. Times in seconds, sizes in bytes.

    Attributes:
        builds: by build, samples of each round of what is timed, in the mode asked for. All else is of the first one,
            and of as many rounds as its share.
        eager_samples: the same by device events around eager calls; empty unless the mode is cuda_graph.
        stages, copied_bytes: from a second, instrumented series.
        alone: samples of pieces run by themselves: the rank's own ``partial`` and the collective that combines
            (phase 1, where there are both), the ``forward`` pass (phase 2).
        weight_bytes, estimated_weight_bytes: counted from storage, and by arithmetic.
        building_bytes, steady_bytes: memory held at most while building; and while running, weights and what ranks
            share included.
        algorithm: kernel and algorithm that ran.
        work: what the passes cannot avoid, by part.
    """

    builds: list[list[float]]
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

    @property
    def samples(self) -> list[float]:
        """Those of all builds."""
        return [seconds for build in self.builds for seconds in build]


def forward_pass(case: Case, built: Built) -> timing.Call:
    """What this phase times."""
    return lambda: built.method(built.x_BK)


@torch.inference_mode()
def run(case: Case, mode: str, rounds: int, warmup: int, flush: bool) -> TimingResult:
    """Build and time the case on this rank; all ranks call it together."""
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)

    def describe(built: Built, share: timing.Protocol) -> TimingResult:
        call = forward_pass(case, built)
        found = described(case, built, call, share, lambda: _alone(built.method, built.x_BK, share))
        if mode == "cuda_graph":
            found.eager_samples = timing.time_call(call, built.x_BK.device, replace(share, mode="cuda_events"))
        return found

    make = partial(build, case, layer=case.layer(this_device()))
    return over_builds(make, protocol, describe, samples_of(case, forward_pass))


def samples_of(case: Case, prepare: Prepare) -> Callable[[Built, timing.Protocol], list[float]]:
    """What takes the samples of a build, of what is prepared of it."""
    return lambda built, share: timing.time_call(prepare(case, built), built.x_BK.device, share)


def described(
    case: Case,
    built: Built,
    call: timing.Call,
    protocol: timing.Protocol,
    alone: Callable[[], dict[str, timing.Call]],
    backward: bool = False,
    stages_of: Callable[..., StageTimes] = time_stages,
) -> TimingResult:
    """All but the samples of one build.

    Args:
        call: what is timed, both passes where it goes ``backward`` too.
        alone: makes the pieces that are run by themselves, once the memory of the whole is known.
    """
    device, method = built.x_BK.device, built.method
    with memory.peak_bytes(device) as steady:
        call()
    stages = stages_of(call, device, protocol)
    return TimingResult(
        builds=[],
        eager_samples=[],
        stages=stages.seconds,
        copied_bytes=stages.copied_bytes,
        alone={name: timing.time_call(piece, device, protocol) for name, piece in alone().items()},
        weight_bytes=method.weight_bytes(),
        estimated_weight_bytes=built.estimate.steady,
        building_bytes=built.building_bytes,
        steady_bytes=method.weight_bytes() + method.shared_bytes + steady[0],
        algorithm=method.algorithm,
        work=method.work(case.B, backward),
    )


def _alone(method: Method, x_BK: torch.Tensor, protocol: timing.Protocol) -> dict[str, timing.Call]:
    if type(method.exit) is Exit or protocol.mode == "none":
        return {}
    part = Part.of(method.multiply(x_BK, Exit()))
    return {"partial": lambda: method.multiply(x_BK, Exit()), "combine": lambda: method.exit.join(part)}
