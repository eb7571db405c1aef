"""What there is to pick for a method that trains by a recipe."""

from __future__ import annotations

from blockshock.methods.axes import AXES, Axis, Picks
from blockshock.methods.layer import Layer
from blockshock.training import RECIPES, recipe_of


@AXES.register("recipe")
class RecipeAxis(Axis):
    """How a layer is trained with 2:4 products."""

    registry = RECIPES

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return self.names(device) if both_ways else self.covered(device)

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if RECIPES.get(name).own_forward)

    def check(self, spec: str) -> None:
        recipe_of(spec)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        return recipe_of(spec).unsuitable(layer.source.N, layer.source.K)
