"""Activations that are 2:4 in a feed-forward block y = act(x W₁ᵀ) W₂ᵀ. Weights stay dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from blockshock.kernels.make24 import Making, make24
from blockshock.registry import check_range
from blockshock.training.recipes.blocks import BLOCK_RECIPES, BlockRecipe, check_choice
from blockshock.training.recipes.packing import in_one_pass
from blockshock.training.sparse import mask_24, mask_of_bits, transposable_mask

ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda z: F.relu(z).square(),
}
"""Of zero they are zero: what is thinned before them is thinned after them."""
CHOICES = {"where": ("pre", "post"), "gradient": ("sp24", "dense", "ste"), "masks": ("tile", "rows"), "act": (*ACTS,)}


@BLOCK_RECIPES.register("activation")
@dataclass
class Activation(BlockRecipe):
    """Of each four features of a token two go on to W₂, the largest; in training and in evaluation alike.

    Args:
        where: S before the activation function, act(S(z)), as for relu²; or after it, S(act(z)).
        gradient: what comes back through S. ``sp24``: what the mask keeps, which W₁'s products take as 2:4. ``dense``:
            the same numbers, in dense products. ``ste``: all, straight through; of relu and relu2 with ``where=pre``
            these are the same numbers again, for what is dropped is zero there, where those have no slope.
        act: gelu, relu, or relu2, its square.
        masks: what is kept is the largest, in size but for z before relu or relu2. ``tile``: 2:4 along tokens too, so
            that ∇W₂ and ∇W₁ have a 2:4 operand; a token's mask depends on the other three of its tile. ``rows``: along
            features alone. In the products over tokens the features of ``a`` with most zeros are then thinned along
            tokens too, at the cost of exactness, and the others are dense.
        dense: share of features that are those others, at most: the rest is rounded up to a multiple of 128. With 1
            both products over tokens are exact, and dense.
    """

    source = "Haziza et al., arXiv 2503.16672 (pre, relu2, rows, dense = 0.05); xFormers' sparsify24 (tile)"
    where: str = "pre"
    gradient: str = "sp24"
    act: str = "relu2"
    masks: str = "tile"
    dense: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_range(0, 1, dense=self.dense)

    @property
    def both_ways(self) -> bool:
        return self.masks == "tile"

    def thinned(self, z_BH: torch.Tensor, is_training: bool) -> torch.Tensor:
        act = ACTS[self.act]
        return act(self._thin(z_BH)) if self.where == "pre" else self._thin(act(z_BH))

    @property
    def _signed(self) -> bool:
        """Of z before relu what is negative is worth less than nothing."""
        return self.where == "pre" and self.act != "gelu"

    def making(self) -> Making:
        along = "tiles" if self.both_ways else "rows_first"
        return Making(along, "largest" if self._signed else "largest_size", self.act, self.where == "post")

    def _kept(self, x_BH: torch.Tensor) -> torch.Tensor:
        search = _traced_search if torch.compiler.is_compiling() else _search
        return search(x_BH, self.masks == "tile", self._signed)


def _search(x_BH: torch.Tensor, tiles: bool, signed: bool) -> torch.Tensor:
    if not tiles:
        return mask_24(x_BH, signed=signed)
    if in_one_pass(x_BH):
        bits = make24(x_BH, Making("tiles", "largest" if signed else "largest_size")).mask
        assert bits is not None
        return mask_of_bits(bits)
    # All tiles keep eight of sixteen, so that what is added to each number decides nothing.
    return transposable_mask(x_BH.double() - x_BH.double().min() if signed and x_BH.numel() else x_BH)


# A search looks at values, which compilers know nothing of: to them it is one step.
_traced_search = torch.library.custom_op(
    "blockshock::search_24", _search, mutates_args=(), schema="(Tensor x, bool tiles, bool signed) -> Tensor"
)


@_traced_search.register_fake
def _(x_BH: torch.Tensor, tiles: bool, signed: bool) -> torch.Tensor:
    return x_BH.new_empty(x_BH.shape, dtype=torch.bool)
