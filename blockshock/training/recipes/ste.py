"""Masks by magnitude, a new one after each step, with gradients straight through; and what decays what they drop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.kernels import fours
from blockshock.training.recipes.base import RECIPES, Recipe
from blockshock.training.sparse import mask_24


@RECIPES.register("ste")
@dataclass
class Ste(Recipe):
    """Of each four of a row the two largest |w| multiply; the gradient is that of all four.

    Args:
        every: steps from one mask to the next.
    """

    operand = "W, along rows"
    source = "straight-through estimator, Bengio et al., arXiv 1308.3432"
    prunes, form = True, "rows"
    every: int = 1

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        return mask_24(w_NK)

    def mask_bits(self, w_NK: torch.Tensor) -> torch.Tensor:
        return fours.two_largest_bits(w_NK.detach()) if fours.takes(w_NK) else super().mask_bits(w_NK)


@RECIPES.register("sr_ste")
@dataclass
class SrSte(Ste):
    """The same with λ(1 − mask)⊙W added to the gradient, so that masks settle.

    Its authors add it in the backward pass. Here it comes before the optimizer's step, which is the same sum where
    nothing clips: a GradScaler does not divide it, and gradients of several passes have it once.

    Args:
        every: steps from one mask to the next.
        decay: λ.
    """

    own_forward = False
    source = "SR-STE, Zhou et al., arXiv 2102.04010 (λ = 2e-4)"
    decay: float = 2e-4
