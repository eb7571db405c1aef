"""What can be told of a tensor without a look at its values: where it lies, and how often it was written to.

A write through a tensor or a view of it moves its version; ``set_`` and ``tensor.data = other`` its memory. No write
through ``tensor.data``, or a pointer, moves anything. Inference tensors have no version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


States = tuple[list[Any], list[int]]
"""Of some tensors in turn how often each was written to, and where it lies; and of those that need a gradient, which
tensors they are."""


def kept_states_of(several: Iterable[Iterable[torch.Tensor | None]]) -> States:
    """In fewer steps, of tensors whose memory others hold too, so that no other memory comes to lie there."""
    found: list[Any] = []
    trained: list[int] = []
    try:
        for tensors in several:
            for tensor in tensors:
                if tensor is not None:
                    found += tensor._version, tensor.data_ptr()
                    if tensor.requires_grad:
                        trained.append(id(tensor))
    except RuntimeError:  # of a kind of its own
        return all_states_of(several)
    return found, trained


def all_states_of(several: Iterable[Iterable[torch.Tensor | None]]) -> States:
    """Of any tensors: which memory they lie in is looked at too."""
    every = [tensor for tensors in several for tensor in tensors if tensor is not None]
    states = [state_of(tensor) for tensor in every]
    found = [part for writes, *where in states for part in (writes, where)]
    return found, [id(tensor) for tensor in every if tensor.requires_grad]
