"""Whether a tensor is what it was: as far as torch counts, or bit for bit."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from blockshock.machine import torch_internals
from blockshock.matrices import bits


class Seen:
    """How a tensor was, as far as that can be told without a look at its values.

    A write through ``tensor`` or a view of it moves its version; ``set_`` and ``tensor.data = other`` its memory. No
    write through ``tensor.data``, or a pointer, moves anything. Inference tensors have no version.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        # The weak reference keeps the identity from being given to other memory, and no memory from being freed.
        self._memory = StorageWeakRef(torch_internals.local_of(tensor).untyped_storage())
        self._state = self._state_of(tensor)

    @staticmethod
    def _state_of(tensor: torch.Tensor) -> tuple[int, int, int]:
        local = torch_internals.local_of(tensor)
        # A write through a DTensor moves its own version alone.
        return (
            torch_internals.version(tensor) + torch_internals.version(local),
            local.data_ptr(),
            torch_internals.memory_of(local),
        )

    def is_still(self, tensor: torch.Tensor) -> bool:
        return self._state_of(tensor) == self._state


def first_difference(found: torch.Tensor, should: torch.Tensor) -> str | None:
    """The first element that is not the same bits in both: what it is, where, and what it should be."""
    different = (bits(found) != bits(should)).flatten()
    if not different.any():
        return None
    where = tuple(int(index) for index in torch.unravel_index(different.byte().argmax(), found.shape))
    return f"{found[where].item()} at {where}, not {should[where].item()}"
