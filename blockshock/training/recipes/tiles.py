"""Tiles that are 2:4 both ways: which of the 90 each is, as 16 bits and as a mask; and the best ones of a W."""

from __future__ import annotations

import torch

from blockshock.kernels import make24
from blockshock.matrices import untile
from blockshock.training.recipes.packing import in_one_pass
from blockshock.training.sparse import transposable_mask


def tile_mask(w_NK: torch.Tensor) -> torch.Tensor:
    """The transposable mask of a weight (N, K) that keeps most of Σ|w|, boolean (N, K).

    Where a GPU can in one pass, of W rounded to bf16: between tiles that are equal up to that the first is taken.
    """
    rounded_NK = w_NK.detach().to(torch.bfloat16) if w_NK.is_cuda else w_NK
    if not in_one_pass(rounded_NK):
        return transposable_mask(w_NK)
    bits = make24.make24(rounded_NK, make24.Making("tiles", exact=True)).mask
    assert bits is not None
    return mask_of_bits(bits)


def bits_of(masks: torch.Tensor) -> torch.Tensor:
    """Boolean 4 × 4 tiles (…, 4, 4) as ``make24`` has them, int16 (…)."""
    places = torch.arange(16, device=masks.device, dtype=torch.int32)
    return (masks.flatten(-2).int() << places).sum(-1).to(torch.int16)


def mask_of_bits(bits: torch.Tensor) -> torch.Tensor:
    """The inverse, of a whole matrix: int16 (R/4, C/4) → bool (R, C)."""
    places = torch.arange(16, device=bits.device, dtype=torch.int32)
    return untile((bits.int()[..., None] >> places & 1).bool().unflatten(-1, (4, 4)))
