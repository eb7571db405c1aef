"""Combining in compiled code: collectives are traced, and all else is one operator to the compiler."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from blockshock.machine.combines.base import Combine, Part, Place, side_by_side

_numbers = count()
_known: WeakValueDictionary[int, Combine] = WeakValueDictionary()


def known(combine: Combine) -> int:
    """The number by which the operator finds it, for as long as it lives."""
    number = next(_numbers)
    _known[number] = combine
    return number


def traced_sum(combine: Any, part: Part) -> torch.Tensor:
    """As of ``Combine.sum``."""
    if combine.is_traced:
        total = combine.sum(part)
        # torch 2.11 gives what the collective wrote over as an output too. Were that this tensor, it would get the
        # gradient, and the part zeros.
        return total.view_as(total)
    return _combined(part.all(), combine.number, 0)


def traced_gather(combine: Any, part: Part, ranks: int, place: Place = side_by_side) -> torch.Tensor:
    """As of ``Combine.gather``."""
    if combine.is_traced:
        return combine.gather(part, place)
    found = _combined(part.all(), combine.number, ranks)
    if place is side_by_side:
        return found
    whole = torch.empty_like(found)
    place.put(list(found.chunk(ranks, dim=1)), whole)
    return whole


@torch.library.custom_op(
    "blockshock::combined", mutates_args=(), schema="(Tensor part, int combine, int shards) -> Tensor"
)
def _combined(part: torch.Tensor, combine: int, shards: int) -> torch.Tensor:
    """The sum of all ranks' parts; or, of so many feature shards, all side by side."""
    way = _known[combine]
    return way.gather(Part.of(part)) if shards else way.sum(Part.of(part))


@_combined.register_fake
def _(part: torch.Tensor, combine: int, shards: int) -> torch.Tensor:
    return part.new_empty(part.shape[0], part.shape[1] * max(shards, 1))
