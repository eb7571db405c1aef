"""The W that was generated last, whole, on a GPU that has room for it: all rows of a point are of one W, which each
build of each would make anew.

It is nothing that a row holds: it is made before what a build takes is measured, and given back where memory is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from blockshock.machine import memory

_held: dict[Hashable, torch.Tensor] = {}
"""One at most."""


def remember(key: Hashable, size: int, device: torch.device, beside: int, make: Callable[[], torch.Tensor]) -> None:
    """Hold what ``make`` gives, of ``size`` bytes, in the place of what is held; where the device can spare it beside
    what else is to lie there."""
    if key in _held:
        return
    forget()
    if memory.can_spare(size, device, beside):
        _held[key] = make()


def remembered(key: Hashable) -> torch.Tensor | None:
    """What is held by that key, not to be written to."""
    return _held.get(key)


def forget() -> None:
    _held.clear()


memory.drop_on_need(forget)
