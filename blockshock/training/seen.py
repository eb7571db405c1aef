"""Whether a tensor is what it was: as far as torch counts, or bit for bit."""

from __future__ import annotations

from weakref import ref

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from blockshock.machine import state_of, torch_internals
from blockshock.matrices import bits


class Seen:
    """How a tensor was, as far as that can be told without a look at its values.

    A write through ``tensor`` or a view of it moves its version; ``set_`` and ``tensor.data = other`` its memory. No
    write through ``tensor.data``, or a pointer, moves anything. Inference tensors have no version.

    Attributes:
        state: that, as numbers: equal as long as nothing moved.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = ref(tensor)
        self.state: tuple[int, int, int] | None = None
        self.see(tensor)

    def see(self, tensor: torch.Tensor) -> None:
        """From now on how it is now counts."""
        before, self.state = self.state, state_of(tensor)
        if before is None or before[2] != self.state[2]:
            # The weak reference keeps the identity from being given to other memory, and no memory from being freed.
            self._memory = StorageWeakRef(torch_internals.local_of(tensor).untyped_storage())

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether this is of that very tensor."""
        return self._tensor() is tensor

    def is_still(self, tensor: torch.Tensor) -> bool:
        return state_of(tensor) == self.state


def first_difference(found: torch.Tensor, should: torch.Tensor) -> str | None:
    """The first element that is not the same bits in both: what it is, where, and what it should be."""
    different = (bits(found) != bits(should)).flatten()
    if not different.any():
        return None
    where = tuple(int(index) for index in torch.unravel_index(different.byte().argmax(), found.shape))
    return f"{found[where].item()} at {where}, not {should[where].item()}"
