"""The stages of a call, timed in a series of rounds of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from blockshock.measure import Call, Prologue, Protocol, warm_up
from blockshock.stages import recording


@dataclass
class StageTimes:
    """Seconds of each round by stage name, and the bytes that layout copies wrote in one pass."""

    seconds: dict[str, list[float]]
    copied_bytes: int


def time_stages(call: Call, device: torch.device, protocol: Protocol) -> StageTimes:
    """A second, instrumented series of rounds. Its marks cost a little, so the headline never comes from it."""
    if protocol.mode == "none":
        return StageTimes({}, 0)
    prologue = protocol.prologue(device)
    if protocol.mode == "cuda_graph":
        return _graph_stages(call, prologue, protocol)
    return _eager_stages(call, device, prologue, protocol)


def _graph_stages(call: Call, prologue: Prologue, protocol: Protocol) -> StageTimes:
    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, external=True)
        event.record()
        return event

    warm_up(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"), recording(mark) as recorder:
        call()
    rounds = []
    for _ in range(protocol.warmup + protocol.rounds):
        prologue(drain=False)
        graph.replay()
        torch.cuda.synchronize()
        rounds.append(recorder.seconds(lambda start, end: start.elapsed_time(end) * 1e-3))
    return StageTimes(_by_name(rounds[protocol.warmup :]), recorder.copied_bytes)


def _eager_stages(call: Call, device: torch.device, prologue: Prologue, protocol: Protocol) -> StageTimes:
    def device_mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    on_device = device.type == "cuda"
    rounds = []
    for _ in range(protocol.warmup + protocol.rounds):
        prologue(drain=True)
        with recording(device_mark if on_device else time.perf_counter) as recorder:
            call()
        if on_device:
            torch.cuda.synchronize()
            rounds.append(recorder.seconds(lambda start, end: start.elapsed_time(end) * 1e-3))
        else:
            rounds.append(recorder.seconds(lambda start, end: end - start))
    return StageTimes(_by_name(rounds[protocol.warmup :]), recorder.copied_bytes)


def _by_name(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [stages[name] for stages in rounds] for name in (rounds[0] if rounds else {})}
