"""Memory that the GPUs of a group read of each other: torch's symmetric memory, bounded and shared by their layers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from blockshock.errors import InputError
from blockshock.machine import torch_internals
from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import Peers
from blockshock.machine.streams import another_stream, current_stream

MOST_BYTES = 512 << 20
"""Of one: what is larger goes through it block by block, and nothing of a block runs beside the next."""
LEAST_BYTES = 1 << 20
ALIGNED = 8
"""Rows: of a multiple of them each block begins where words of 16 bytes do."""

_newest: WeakKeyDictionary[Any, dict[str, ref[Workspace]]] = WeakKeyDictionary()
"""Of a group, by what they are for."""


def workspace_bytes(needed: int) -> int:
    """Bytes that a rank holds for parts of so many: a power of two, within bounds."""
    return min(max(1 << math.ceil(math.log2(max(needed, 1))), LEAST_BYTES), MOST_BYTES)


def most_elements(tokens: int, features: int) -> int:
    """Of the parts that a layer is to be fast for: of as many rows as a block has at least."""
    return max(tokens, ALIGNED) * features


def workspace_for(group: Group, needed: int, device: torch.device, use: str = "parts") -> Workspace:
    """One for so many bytes: the group's own, where that is large enough.

    All ranks call it together. Who has one keeps it: a larger one that another layer needs does not replace it.

    Args:
        use: all that may lie in it: ``parts``, or ``sums``, of kernels that sum over the ranks themselves.
    """
    newest = _newest.setdefault(group, {})
    held = newest.get(use, lambda: None)()
    if held is None or held.size < workspace_bytes(needed):
        held = Workspace(group, workspace_bytes(needed), device)
        newest[use] = ref(held)
    return held


class Workspace:
    """Bytes of each rank of a group, which all its GPUs reach, and a second stream to work on them.

    Who uses it leaves it read by all: calls on a group follow one another, as NCCL asks for too. Eager calls on
    several streams are put in order here; CUDA graphs of one group are to be replayed one after another.

    Raises:
        InputError: the GPUs cannot reach each other's memory.
    """

    def __init__(self, group: Group, size: int, device: torch.device) -> None:
        # Multicast is nothing that these ways need, and setting it up can fail where others use the GPUs too.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        self.size, self._device, self._name = size, device, group.group_name
        self.rank, self.ranks = group.rank(), group.size()
        self._last: torch.cuda.Stream | None = None
        try:
            with torch.inference_mode(False):  # what is written later must not be an inference tensor
                self._memory, self._handle = torch_internals.peer_memory(size, device, group)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"the GPUs of these {self.ranks} ranks cannot reach each other's memory ({reason}): pick combine nccl"
            ) from error

    @cached_property
    def peers(self) -> Peers:
        """All of it, for kernels that sum over the ranks themselves; made before any of them is captured."""
        memories = tuple(self.view(rank, (self.size // 4,), torch.float32) for rank in range(self.ranks))
        return Peers(self.rank, memories, torch.zeros(2, dtype=torch.int32, device=self._device))

    def rows(self, features: int, dtype: torch.dtype) -> int:
        """How many rows of so many elements fit in: a multiple of eight, so that each block of them is aligned."""
        rows = self.size // (features * dtype.itemsize) // ALIGNED * ALIGNED
        if not rows:
            raise InputError(f"{features} features of {dtype} are more than the {self.size} bytes that ranks share")
        return rows

    def view(self, rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The first bytes of a rank's, as a tensor."""
        if rank != self.rank:
            return self._handle.get_buffer(rank, shape, dtype)
        # torch's operators look its own memory up by the tensor that it came as.
        size = math.prod(shape) * dtype.itemsize
        return self._memory[:size].view(dtype).view(shape)

    def barrier(self) -> None:
        """On the current stream: what was written before it, on any rank, is there after it on all."""
        self._handle.barrier(channel=0)

    def add_up(self, shots: str, part: torch.Tensor, total: torch.Tensor) -> None:
        """The sum of all ranks' parts, of which this one's is given, by that operator of torch's."""
        torch_internals.add_up(shots, part, self._name, total)

    def enter(self) -> None:
        """Have the current stream come after the last that used it, and find another to work beside it; called before
        each use."""
        self._second = another_stream(self._device)
        if torch.cuda.is_current_stream_capturing():
            return
        stream = current_stream(self._device)
        if self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the second stream, after all that the current one was given so far."""
        self._second.wait_stream(current_stream(self._device))
        with torch.cuda.stream(self._second):
            yield

    def mark(self) -> torch.cuda.Event:
        """All that the second stream was given so far, to be waited for."""
        return self._second.record_event()

    def wait_for(self, mark: torch.cuda.Event) -> None:
        """Have the current stream come after that."""
        current_stream(self._device).wait_event(mark)

    def wait(self) -> None:
        """Have the current stream come after all that the second was given."""
        current_stream(self._device).wait_stream(self._second)
