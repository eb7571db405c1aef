"""Timing a call on its device. All times are in seconds.

Before each round the last-level cache is filled with clean lines of another buffer (unless asked not to) and the ranks
are aligned on the device. Modes:

- ``sync``: host clock around the call and a device synchronisation. The only mode on a CPU.
- ``cuda_events``: device events around an eager call into an idle device. Includes launch overhead.
- ``cuda_graph``: device events around the replay of the captured call. What a compiled or captured model pays.
- ``none``: the call runs once, untimed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from blockshock.errors import InputError
from blockshock.machine import memory

MODES = ("sync", "cuda_events", "cuda_graph", "none")
FLUSH_CACHES = {"cuda": 4, "cpu": 1}
"""Times what the last-level cache holds that a flush reads: a GPU's does not replace its oldest lines first."""

Call = Callable[[], object]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Protocol:
    """How a call is timed.

    Attributes:
        mode: one of MODES.
        rounds, warmup: timed rounds, and untimed ones before them.
        flush: flush the last-level cache before each round.
        align: brings all ranks to the same point, on the device where there is one.
        prologues: those that were made for it, and for what it was ``replace``d from.
    """

    mode: str
    rounds: int
    warmup: int
    flush: bool = True
    align: Call = lambda: None
    prologues: dict[tuple[torch.device, bool, Call], Prologue] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"no timing mode is named {self.mode!r}; choose one of {', '.join(MODES)}")
        if self.rounds < 1 or self.warmup < 0:
            raise InputError(f"timing takes at least 1 round and 0 before it, got {self.rounds} and {self.warmup}")

    def prologue(self, device: torch.device) -> Prologue:
        """What precedes every round: made once, for a capture takes as long as many rounds."""
        key = device, self.flush, self.align
        if key not in self.prologues:
            self.prologues[key] = Prologue(device, self)
        return self.prologues[key]


def warm_up(call: Call) -> None:
    """Run the call three times aside, so that lazy set-up stays out of its capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()


def capture(call: Call) -> torch.cuda.CUDAGraph:
    """The call as a CUDA graph."""
    warm_up(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph


class Prologue:
    """What precedes every round. On CUDA it is one graph, so that the host is never late with the call itself.

    The flush reads. Had it written, the cache would be full of lines that the timed call must write back before it can
    have any of its own: a good part of a short call that moves nothing but its weights (docs/earlier-runs.md).
    """

    def __init__(self, device: torch.device, protocol: Protocol) -> None:
        self._cuda = device.type == "cuda"
        # Owned by the prologue: a captured graph does not keep the tensors alive that it reads. Ones, since a CPU maps
        # all pages of fresh zeros to the same memory.
        size = FLUSH_CACHES[device.type] * memory.cache_bytes(device) if protocol.flush else 0
        self._buffer = torch.ones(size // 4, device=device)
        self._sum = torch.zeros((), device=device)
        self._align = protocol.align
        self._graph = capture(self._prepare) if self._cuda else None

    def _prepare(self) -> None:
        if len(self._buffer):
            torch.sum(self._buffer, 0, out=self._sum)
        self._align()

    def __call__(self, drain: bool) -> None:
        if self._graph is None:
            self._prepare()
            return
        self._graph.replay()
        if drain:
            torch.cuda.synchronize()


def time_call(call: Call, device: torch.device, protocol: Protocol) -> list[float]:
    """Seconds of each round of ``call``; empty in mode ``none``, which runs it once."""
    return time_calls([call], device, protocol)[0]


def time_calls(
    calls: Sequence[Call],
    device: torch.device,
    protocol: Protocol,
    order: Sequence[int] | None = None,
) -> list[list[float]]:
    """Seconds of each round of each call, the calls of a round one after the other.

    Every other round goes through them the other way round: what slows the machine down for a while, or leaves it
    warm, meets all calls alike.

    Args:
        order: in which the calls are captured, and run in the first round.
    """
    order = range(len(calls)) if order is None else order
    if protocol.mode == "none":
        for index in order:
            calls[index]()
        return [[] for _ in calls]
    prologue = protocol.prologue(device)
    rounds = [order if number % 2 == 0 else order[::-1] for number in range(protocol.warmup + protocol.rounds)]
    if protocol.mode == "sync":
        samples = _host_rounds(calls, device, prologue, rounds)
    elif protocol.mode == "cuda_graph":
        graphs = {index: capture(calls[index]) for index in order}
        samples = _device_rounds([graphs[index].replay for index in range(len(calls))], prologue, rounds, drain=False)
    else:
        samples = _device_rounds(calls, prologue, rounds, drain=True)
    return [times[protocol.warmup :] for times in samples]


def _host_rounds(
    calls: Sequence[Call], device: torch.device, prologue: Prologue, rounds: Sequence[Sequence[int]]
) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in calls]
    for order in rounds:
        for index in order:
            prologue(drain=True)
            start = time.perf_counter()
            calls[index]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            samples[index].append(time.perf_counter() - start)
    return samples


def _device_rounds(
    launches: Sequence[Call], prologue: Prologue, rounds: Sequence[Sequence[int]], drain: bool
) -> list[list[float]]:
    # Without a drain the host runs ahead of the device during the prologue, so no launch is ever waited for.
    events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in launches]
    for order in rounds:
        for index in order:
            prologue(drain)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            launches[index]()
            end.record()
            events[index].append((start, end))
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) * 1e-3 for start, end in pairs] for pairs in events]


def medians(device: torch.device, rounds: int = 15) -> Callable[[Call], float]:
    """What takes the median seconds of calls, to choose one of several by: captured on a GPU, by the host's clock on a
    CPU."""
    protocol = Protocol("cuda_graph" if device.type == "cuda" else "sync", rounds, warmup=3)
    return lambda call: percentile(time_call(call, device, protocol), 50)


def median_seconds(call: Call, device: torch.device) -> float:
    """Of one call alone, as of ``medians``."""
    return medians(device)(call)


def host_seconds(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What a call returns, and its seconds by the host clock, with the device synchronised before and after."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return result, time.perf_counter() - start


def check_durations(samples: Sequence[float], whose: str) -> None:
    """Raise ValueError, which names it, for a sample that no sound clock gives: negative, infinite or no number."""
    for number, seconds in enumerate(samples):
        if not 0 <= seconds < math.inf:
            raise ValueError(f"round {number} of {whose} took {seconds} s: the clock is not sound")


def slowest(per_rank: list[list[float]]) -> list[float]:
    """Of each round the time of the slowest rank.

    Raises:
        ValueError: a sample is no duration; the largest of several would hide it.
    """
    for rank, samples in enumerate(per_rank):
        check_durations(samples, f"rank {rank}")
    return [max(times) for times in zip(*per_rank, strict=True)]


def percentile(samples: list[float], percent: int) -> float:
    """The given percentile, linearly interpolated; of one sample, that sample."""
    if not samples or not 0 < percent < 100:
        raise InputError(
            f"there is no percentile {percent} of {len(samples)} samples: it takes 1 to 99, of at least one"
        )
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
