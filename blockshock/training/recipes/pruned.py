"""Prune once, then retrain: the mask of a dense checkpoint, for good."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.training.recipes.base import RECIPES, Recipe
from blockshock.training.recipes.tiles import tile_mask


@RECIPES.register("pruned")
@dataclass
class Pruned(Recipe):
    """The transposable mask of the W that it begins with stays; what it drops is zero, and gets no gradient."""

    operand = "W, along rows and columns"
    source = "Mishra et al., arXiv 2104.08378; transposable: Hubara et al., arXiv 2102.08124"
    prunes = turns = True
    form = "tiles"
    keeps_dropped = own_forward = False

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        return tile_mask(w_NK)
