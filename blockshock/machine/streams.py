"""Which GPU, and which of its streams, is the current one: asked several times a call, so in the fewest steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from blockshock.machine import torch_internals

_NOTHING = nullcontext()
_streams: dict[tuple[int, int], torch.cuda.Stream] = {}
_others: dict[int, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}


def on_gpu(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a tensor's GPU the current one; where it is that already, as most times, there is nothing to do."""
    return _NOTHING if torch.cuda.current_device() == device.index else torch.cuda.device(device)


def current_stream(device: torch.device) -> torch.cuda.Stream:
    """That of such a GPU, for which torch makes an object anew each time."""
    key = device.index, torch_internals.stream_address(device.index)
    if (known := _streams.get(key)) is None:
        known = _streams[key] = torch.cuda.current_stream(device)
    return known


def another_stream(device: torch.device) -> torch.cuda.Stream:
    """One of such a GPU that is not its current one, for work beside that.

    Torch hands out the same 32 streams in turn: one that was asked for earlier may come to be the current one, and that
    on which graphs are captured is one of them. On both at once nothing runs beside anything.
    """
    if device.index not in _others:
        _others[device.index] = torch.cuda.Stream(device), torch.cuda.Stream(device)
    one, other = _others[device.index]
    return other if one == current_stream(device) else one
