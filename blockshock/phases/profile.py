"""``--profile``: a trace of what a phase times, and which kernels and collectives share its time.

As it is timed, but call after call: no flush and no alignment between them, so that nothing else is in the trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity

from blockshock.measure import timing
from blockshock.phases import ffn, ffn_step
from blockshock.phases.backward import both_passes
from blockshock.phases.case import Case, build, this_device
from blockshock.phases.forward import forward_pass
from blockshock.phases.train import Step

CALLS = 5
SAVED = 20
"""Kernels that a benchmark names: those that take longest. The trace has all."""
PASSES: dict[int, Callable[[Any], timing.Call]] = {
    1: lambda case: forward_pass(case, build(case)),
    2: lambda case: both_passes(case, build(case, backward=True)),
    3: lambda case: Step(case, build(case)),
    6: lambda case: ffn_step.Step(ffn.build(case)),
}
"""What each phase times of a case."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel of the device, or on a CPU one operator.

    Attributes:
        kind: ``collective``, ``copy`` or ``kernel``.
        calls: in one pass.
        seconds: in one pass.
        share: of the time of all kernels.
    """

    name: str
    kind: str
    calls: int
    seconds: float
    share: float


def run(case: Case, phase: int, mode: str, trace: Path) -> list[KernelTime]:
    """Profile on this rank what the phase times, and write this rank's trace; all ranks call it together.

    Args:
        trace: a Chrome trace, which Perfetto opens too, gzipped if the name ends so; ``{rank}`` stands for the rank.
    """
    with torch.inference_mode(phase == 1):
        device, call = this_device(), PASSES[phase](case)
        launch = timing.capture(call).replay if mode == "cuda_graph" else call
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(CALLS + 1):
                launch()
            if device.type == "cuda":
                torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace).replace("{rank}", str(dist.get_rank())))
    return kernel_times(profiler, device)


def kernel_times(profiler: torch.profiler.profile, device: torch.device) -> list[KernelTime]:
    """Time on the device by kernel, the most first; on a CPU an operator's own time, without those it calls."""
    on_gpu = device.type == "cuda"
    events = sorted(profiler.events() or [], key=lambda event: event.time_range.start)
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.device_type.name == device.type.upper() and not event.is_user_annotation:
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found[event.name].append(microseconds * 1e-6)
    # Without the first call, in which a rank waits for the others' profilers to start.
    kept = {name: times[len(times) // (CALLS + 1) :] for name, times in found.items()}
    total = sum(map(sum, kept.values()))
    kernels = [
        KernelTime(name, _kind(name), len(times) // CALLS, sum(times) / CALLS, sum(times) / total)
        for name, times in kept.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)[:SAVED]


def _kind(name: str) -> str:
    if name.startswith(("nccl", "c10d::")):
        return "collective"
    return "copy" if name.startswith(("Mem", "aten::copy_")) else "kernel"
