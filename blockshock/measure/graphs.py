"""Calls as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from blockshock.machine import memory

Call = Callable[[], object]


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
    with capturing(graph):
        call()
    return graph


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """What is launched within it goes into the graph, as within ``torch.cuda.graph``.

    That gives all memory that torch keeps back to the GPU each time, so that whatever comes next has to take it anew:
    for calls of no length this is most of what it takes to time them.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()
    memory.make_room(device)
    with torch.cuda.stream(_capture_stream(device)):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
