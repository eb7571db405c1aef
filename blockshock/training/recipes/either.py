"""A recipe by its name, be it one of single layers or one of feed-forward blocks."""

from __future__ import annotations

from blockshock.errors import UnknownName
from blockshock.registry import parse_spec
from blockshock.training.recipes.base import RECIPES, Recipe, recipe_of
from blockshock.training.recipes.blocks import BLOCK_RECIPES, block_recipe_of


def is_of_blocks(spec: str) -> bool:
    """Whether a spec names a recipe of blocks, whose activations are 2:4; else it is one of layers, or none."""
    return parse_spec(spec)[0] in BLOCK_RECIPES.names()


def any_recipe_of(spec: str) -> Recipe:
    """The recipe that a spec names, of either registry. Raises as ``recipe_of`` and ``block_recipe_of`` do."""
    if is_of_blocks(spec):
        return block_recipe_of(spec)
    try:
        return recipe_of(spec)
    except UnknownName as error:
        if parse_spec(spec)[0] in RECIPES.names():
            raise
        raise UnknownName(f"{error}; of feed-forward blocks {', '.join(BLOCK_RECIPES.names())}") from None
