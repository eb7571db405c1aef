"""The mask that a recipe's weight is multiplied with, in whose place another comes, and what that has changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch

from blockshock.kernels import fours
from blockshock.kernels.soft24 import Soft
from blockshock.training.recipes.base import Recipe
from blockshock.training.sparse import bits_of_mask, mask_of_bits


class InForce(Protocol):
    """A mask in force.

    Attributes:
        held: as it is held.
        mask_NK: what S(W) keeps, boolean.
        flipped: the share of W's elements that this mask keeps and the one before dropped, or the other way round (the
            flip rate of FST), on the device.
    """

    held: torch.Tensor

    @property
    def mask_NK(self) -> torch.Tensor: ...

    @property
    def flipped(self) -> torch.Tensor: ...


class OfRecipe:
    """One that a recipe finds: of elements, boolean or as bits, or of blocks one for each."""

    def __init__(self, held: torch.Tensor, recipe: Recipe) -> None:
        self.held, self._recipe = held, recipe
        self.flipped = torch.zeros((), device=held.device)
        self._ones = _ones(held.device) if held.dtype == torch.int16 else None  # of bits alone

    @property
    def mask_NK(self) -> torch.Tensor:
        if self._ones is not None:
            return mask_of_bits(self.held)
        return self._recipe.spread(self.held) if self._recipe.size else self.held

    def take(self, due: torch.Tensor) -> None:
        """Another one. Copied: a captured graph goes on reading where the old one lies."""
        changed, each = due ^ self.held, 1
        if self._ones is not None:
            changed, each = self._ones.index_select(0, changed.flatten().int() & 0xFFFF), 16
        self.flipped.copy_(changed.sum() / (each * changed.numel()))
        self.held.copy_(due)

    def put(self, mask_NK: torch.Tensor) -> None:
        """A mask of elements, boolean, as if it had been this one all the time."""
        self.held.copy_(mask_NK if self._ones is None else bits_of_mask(mask_NK))


class OfSoft:
    """One that is made with the weights."""

    def __init__(self, soft: Soft) -> None:
        self._soft, self.held = soft, soft.mask

    @property
    def mask_NK(self) -> torch.Tensor:
        return mask_of_bits(self.held)

    @property
    def flipped(self) -> torch.Tensor:
        return self._soft.flipped

    def no_flips(self) -> None:
        """What has changed was no step's doing."""
        self._soft.flips.zero_()


@cache
def _ones(device: torch.device) -> torch.Tensor:
    """How many bits each number of 16 bits has that are one, uint8."""
    numbers = torch.arange(1 << 16, device=device)
    return sum(numbers >> place & 1 for place in range(16)).to(torch.uint8)  # type: ignore[union-attr]


def drop_(x_NK: torch.Tensor, mask: InForce) -> torch.Tensor:
    """Zero what a mask drops, in place."""
    if mask.held.dtype == torch.int16 and fours.takes(x_NK):
        return fours.zero_dropped_(x_NK, mask.held)
    return x_NK.masked_fill_(~mask.mask_NK, 0)


def in_force(soft: Soft | None, due: Callable[[], torch.Tensor], recipe: Recipe) -> InForce:
    """The first mask of a weight; what finds it is asked where it is not made with the weights."""
    return OfRecipe(due(), recipe) if soft is None else OfSoft(soft)
