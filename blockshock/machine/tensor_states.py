"""What can be told of a tensor without a look at its values: where it lies, and how often it was written to.

A write through a tensor or a view of it moves its version; ``set_`` and ``tensor.data = other`` its memory. No write
through ``tensor.data``, or a pointer, moves anything. Inference tensors have no version.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from blockshock.machine.torch_internals import local_of, memory_of, version


def state_of(tensor: torch.Tensor) -> tuple[int, int, int]:
    """How often a tensor was written to, as far as that is counted, from where on it lies, and in which memory."""
    local, writes = local_of(tensor), version(tensor)
    if local is not tensor:
        writes += version(local)  # a write through a DTensor moves its own version alone
    return writes, local.data_ptr(), memory_of(local)


def states_of(several: Iterable[Iterable[torch.Tensor | None]]) -> list[int]:
    """The same of each in turn, one after the other, without those that are None."""
    found: list[int] = []
    try:
        for tensors in several:
            for tensor in tensors:
                if tensor is not None:
                    found += tensor._version, tensor.data_ptr(), tensor.untyped_storage()._cdata
    except RuntimeError:  # of a kind of its own
        alone = [state_of(tensor) for tensors in several for tensor in tensors if tensor is not None]
        return [number for state in alone for number in state]
    return found
