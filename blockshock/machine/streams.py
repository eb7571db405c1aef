"""Which GPU, and which of its streams, is the current one: asked several times a call, so in the fewest steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from blockshock.machine import torch_internals

_NOTHING = nullcontext()
_streams: dict[tuple[int, int], torch.cuda.Stream] = {}


def on_gpu(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a tensor's GPU the current one; where it is that already, as most times, there is nothing to do."""
    return _NOTHING if torch.cuda.current_device() == device.index else torch.cuda.device(device)


def current_stream(device: torch.device) -> torch.cuda.Stream:
    """That of such a GPU, for which torch makes an object anew each time."""
    key = device.index, torch_internals.stream_address(device.index)
    if (known := _streams.get(key)) is None:
        known = _streams[key] = torch.cuda.current_stream(device)
    return known
