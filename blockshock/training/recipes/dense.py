"""Dense training: what the others are measured against, through the same code."""

from __future__ import annotations

from dataclasses import dataclass

from blockshock.training.recipes.base import RECIPES, Recipe


@RECIPES.register("dense")
@dataclass
class Dense(Recipe):
    """All of W multiplies, in every product."""

    own_forward = False
