"""S-STE: weights that are a continuous function of the dense ones, with a scale that stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.training.recipes.base import RECIPES, SIXTEEN, Recipe
from blockshock.training.sparse import fixed_scale, mask_24, soft_threshold_24


@RECIPES.register("s_ste")
@dataclass
class SSte(Recipe):
    """W̃ = β·S(W), S being the soft threshold at the second smallest |w| of each four; β is of the first W, for good.

    Nothing decays, and gradients go straight through. W̃ is not 2:4 along columns: ∇x is a dense product. ∇yᵀ is
    sampled in ∇W. A β that is found anew at each step lets it and the flip rate grow without bound, its authors say.

    With eight bits all operands are stored so, as the paper trains: W̃ and x as e4m3, ∇y and what is drawn of it as
    e5m2, each matrix with one scale.

    Args:
        seed: of the draws.
        bits: 8, or 16 for the layer's dtype.
    """

    operand = "W, along rows; ∇y, along tokens"
    source = "S-STE, Hu et al., arXiv 2409.09099"
    prunes = samples = True
    form = "soft"
    working_bytes = 40  # the scale is one of float64
    seed: int = 0
    bits: int = SIXTEEN

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        return mask_24(w_NK)  # where the threshold leaves something, and among equals the first

    def scale(self, w_NK: torch.Tensor) -> torch.Tensor:
        return fixed_scale(w_NK)

    def weights(self, w_NK: torch.Tensor, mask_NK: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        assert scale is not None
        return soft_threshold_24(w_NK) * scale
