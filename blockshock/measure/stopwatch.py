"""The time of calls that follow one another and are not waited for."""

from __future__ import annotations

import time
from typing import Any

import torch

from blockshock.measure.timing import Call


class Stopwatch:
    """Adds up what calls take: between two events of the device on a GPU, by the host's clock on a CPU.

    What lies between the calls counts for nothing; a device that waits for its host within a call does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, list[tuple[Any, Any]]()

    def __call__(self, call: Call) -> None:
        """Make the call."""
        begin = self._mark()
        call()
        self._marks.append((begin, self._mark()))

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Of all calls so far, which are waited for."""
        if self._device.type != "cuda":
            return float(sum(end - begin for begin, end in self._marks))
        torch.cuda.synchronize(self._device)
        return float(sum(begin.elapsed_time(end) for begin, end in self._marks)) * 1e-3
