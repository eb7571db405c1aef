"""What there is to pick for a method that trains by a recipe."""

from __future__ import annotations

from blockshock.errors import UnknownName
from blockshock.methods.axes import AXES, Axis, Picks
from blockshock.methods.layer import Layer
from blockshock.training import RECIPES, any_recipe_of, is_of_blocks, recipe_of


@AXES.register("recipe")
class RecipeAxis(Axis):
    """How a layer is trained with 2:4 products; or a feed-forward block, where it is not layers that are measured."""

    registry = RECIPES
    about = "Or for feed-forward blocks and what they learn activation, dropout24. Default all of layers"

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        return self.names(device) if both_ways else self.covered(device)

    def covered(self, device: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(device) if RECIPES.get(name).own_forward)

    def check(self, spec: str) -> None:
        try:
            recipe_of(spec)
        except UnknownName as error:
            if not is_of_blocks(spec):
                raise
            raise UnknownName(
                f"{error}. A SparseFFN takes that one, in the place of two layers and what is between them: "
                f"SparseFFN.of(fc1, fc2, {spec!r})"
            ) from None

    def check_listed(self, spec: str) -> None:
        any_recipe_of(spec)

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        if is_of_blocks(spec):
            return "it makes activations 2:4, and a layer alone has none: SparseFFN and tests/test_blocks.py take it"
        return recipe_of(spec).unsuitable(layer.source.N, layer.source.K)
