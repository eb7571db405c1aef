"""A layer that is trained by a recipe: dense weights behind 2:4 products. On one device.

Right is what the recipe says that multiplies and what its gradients are; what it learns is its quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from blockshock.kernels import packed_bytes
from blockshock.machine import Group
from blockshock.matrices import Mask, WeightSource
from blockshock.measure import Operand
from blockshock.methods.base import METHODS
from blockshock.methods.dense_single import Single
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight
from blockshock.training import (
    EIGHT,
    SCORES,
    PackedEightBits,
    Recipe,
    RecipePacking,
    RecipeStorage,
    block_bytes,
    is_of_blocks,
    of_gradients,
    of_values,
    recipe_of,
    represented,
)


class RecipeWeights(WeightSource):
    """S(W) of a recipe in the dtype of the products, or what eight bits have of it, in float64; by rows of what is
    held."""

    def __init__(self, source: WeightSource, recipe: Recipe) -> None:
        w_NK, _ = _sparse(source.gather(slice(None)), recipe)
        self._w_NK = represented(w_NK, of_values()) if recipe.bits == EIGHT else w_NK
        super().__init__(source.N, source.K, self._w_NK.dtype, source.device, source.seed, source.bias)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._w_NK[start:stop]


@METHODS.register("recipe")
class WithRecipe(Single):
    """All of W as one dense parameter, of which S(W) multiplies. Frozen, it is what the recipe trains in the end."""

    promise, role = Promise.LEARNS, Role.SUBJECT
    axes: ClassVar[tuple[str, ...]] = ("recipe",)

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.recipe = _recipe(layer)

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        w_NK, recipe = layer.source.gather(self.columns, rows=self.rows), _recipe(layer)
        if layer.training is not None:
            return RecipeStorage(w_NK, bias, recipe, layer.training, layer.trained_bias(bias))
        w_NK, mask_NK = _sparse(w_NK, recipe)
        return RecipePacking(w_NK, bias, recipe, mask_NK)

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        recipe = _recipe(layer)
        return RecipeWeights(layer.source, recipe) if recipe.prunes else layer.source

    @classmethod
    def met(cls, layer: Layer, x_BK: torch.Tensor, ranks: int = 1, back: bool = False) -> torch.Tensor:
        return represented(x_BK, of_gradients() if back else of_values()) if _recipe(layer).bits == EIGHT else x_BK

    @classmethod
    def plays(cls, picks: Mapping[str, str | Mask]) -> Role:
        """Dense training through the same code is the control: it shows what the 2:4 products are worth."""
        spec = str(picks.get("recipe", "dense"))
        return cls.role if is_of_blocks(spec) or recipe_of(spec).prunes else Role.ABLATION

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        recipe, elements = recipe_of(shape.picks.get("recipe", "dense")), shape.N * shape.K
        held = elements * shape.itemsize
        if recipe.bits == EIGHT:
            held += PackedEightBits.held_bytes(shape.N, shape.K) * 2
        elif recipe.prunes and recipe.is_24 and shape.picks.get("kernel") != "dense":
            held += packed_bytes(shape.N, shape.K, shape.itemsize) * (2 if recipe.turns else 1)
        elif recipe.size and shape.picks.get("kernel") != "dense":
            held += block_bytes(shape.N, shape.K, recipe, shape.itemsize)
        making = elements * (recipe.working_bytes if recipe.prunes else shape.itemsize)
        if shape.training is None:
            return WeightEstimate(held, held + making)
        trained = elements + recipe.elements_beside(shape.N, shape.K)
        held += trained * shape.training.parameter_bytes(shape.itemsize) + _mask_bytes(shape, recipe)
        return WeightEstimate(held, held + making, trained)

    @property
    def resolved(self) -> dict[str, str]:
        return {"kernel": self._packing.kernel}

    @property
    def algorithm(self) -> str:
        told, recipe = self._packing.algorithm, self.recipe
        return f"{told}, a mask every {recipe.every} steps" if recipe.prunes and recipe.keeps_dropped else told

    def trained_beside(self) -> dict[str, nn.Parameter]:
        scores = self._storage.scores
        return {} if scores is None else {SCORES: scores}

    def progress(self) -> dict[str, torch.Tensor]:
        return self._storage.state()

    def faults_of(self, progress: Mapping[str, torch.Tensor]) -> str | None:
        return self._storage.faults(progress)

    def resume(self, progress: Mapping[str, torch.Tensor]) -> None:
        self._storage.resume(progress)

    @property
    def _storage(self) -> RecipeStorage:
        (storage,) = self.storages()
        assert isinstance(storage, RecipeStorage)
        return storage

    def operands(self) -> tuple[list[Operand], list[Operand] | None]:
        packing = self._packing
        return [packing.operand], [packing.grad_operand]

    @property
    def _packing(self) -> RecipePacking:
        (packed,) = self.packings()
        assert isinstance(packed, RecipePacking)
        return packed


def _recipe(layer: Layer) -> Recipe:
    return recipe_of(layer.pick("recipe") or "dense")


def _mask_bytes(shape: Shape, recipe: Recipe) -> int:
    """Of the mask in force, at most: a byte for each element, or each block. Of weights made in one pass: bits."""
    if recipe.size:
        return recipe.elements_beside(shape.N, shape.K)
    return shape.N * shape.K * recipe.prunes


def _sparse(w_NK: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S(W) of a W (N, K) that training would begin with, of its dtype, and its mask; W of one that prunes nothing."""
    if not recipe.prunes:
        return w_NK, None
    wide_NK = w_NK.to(torch.promote_types(w_NK.dtype, torch.float32))
    mask_NK = recipe.mask(wide_NK)
    return recipe.weights(wide_NK, mask_NK, recipe.scale(wide_NK)).to(w_NK.dtype), mask_NK
