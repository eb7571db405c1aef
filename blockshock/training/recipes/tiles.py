"""Recipes whose masks are 2:4 both ways: the best tiles of a W, as a mask and as bits."""

from __future__ import annotations

import torch

from blockshock.kernels import make24
from blockshock.training.recipes.base import Recipe
from blockshock.training.recipes.packing import in_one_pass
from blockshock.training.sparse import bits_of_mask, mask_of_bits, transposable_mask


class OfTiles(Recipe):
    """W multiplies by a mask that keeps most of Σ|w| of each 4 × 4 tile and is 2:4 both ways.

    Where a GPU finds it in one pass, it is that of W rounded to bf16: between tiles that are equal up to that the first
    is taken.
    """

    prunes = turns = True
    form = "tiles"

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        bits = _in_one_pass(w_NK)
        return transposable_mask(w_NK) if bits is None else mask_of_bits(bits)

    def mask_bits(self, w_NK: torch.Tensor) -> torch.Tensor:
        bits = _in_one_pass(w_NK)
        return bits_of_mask(transposable_mask(w_NK)) if bits is None else bits


def _in_one_pass(w_NK: torch.Tensor) -> torch.Tensor | None:
    """The bits of the best mask, int16 (N/4, K/4); None where no kernel of ours finds it."""
    rounded_NK = w_NK.detach().to(torch.bfloat16) if w_NK.is_cuda else w_NK
    return make24.make24(rounded_NK, make24.Making("tiles", exact=True)).mask if in_one_pass(rounded_NK) else None
