"""W′ in place of W: 2:4, at what loss a pruner can. On one device, or a shard of it on each rank.

Right is what is right for W′. What W′ loses against W is the quality of a row, and no failure.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.matrices import WeightSource
from blockshock.methods.base import METHODS
from blockshock.methods.dense_single import DenseSingle
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role
from blockshock.methods.layer import Layer
from blockshock.methods.pieces import PieceMethod
from blockshock.methods.product import Weight
from blockshock.methods.tensor_parallel import ColumnParallel, RowParallel
from blockshock.pruning import JoinedWeights, PrunedWeights, pruning_bytes


class PrunedMethod(PieceMethod):
    """Each rank's part of W, pruned by itself and multiplied by a kernel. How ranks agree, another class says."""

    promise, role = Promise.OWN_WEIGHTS, Role.SUBJECT
    axes: ClassVar[tuple[str, ...]] = ("kernel", "pruner", "storage")
    multiple = 4

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        piece = layer.pruned_piece(self.rows, self.columns)
        return self._packed(layer, piece, self._kernel_for(layer, [piece]), bias, adds_bias)

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        shape = Shape.of(layer.source, ranks)
        rows, columns = cls.part(shape, 0)
        if (rows, columns) == (slice(0, shape.N), slice(0, shape.K)):
            return layer.pruned(rows, columns)
        parts = [layer.pruned(*cls.part(shape, rank)) for rank in range(ranks)]
        return JoinedWeights(parts, int(rows.stop == shape.N), layer.source.bias)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        rows, columns = cls.part(shape, 0)
        N, K = len(range(shape.N)[rows]), len(range(shape.K)[columns])
        packed = cls._estimate(N, K, shape, None if shape.mask is None else shape.mask.part(rows, columns))
        packing = packed.building + PrunedWeights.held_bytes(N, K, shape.itemsize)
        pruning = pruning_bytes(shape.picks.get("pruner", "magnitude"), N, K, shape.K, shape.itemsize)
        return WeightEstimate(packed.steady, max(packing, pruning), packed.trained)


@METHODS.register("pruned")
class Pruned(PrunedMethod, DenseSingle):
    """All of W′ on one device, in a sparse kernel's format. Stores N·K/2 kept values, and their positions."""

    joins = True


@METHODS.register("pruned_dense")
class PrunedDense(Pruned):
    """The ablation: W′ stored dense, with its zeros multiplied."""

    role = Role.ABLATION
    axes = ("pruner",)
    otherwise: ClassVar[dict[str, str]] = {"kernel": "dense", "storage": "masked"}


@METHODS.register("pruned_tp_row")
class PrunedRowParallel(PrunedMethod, RowParallel):
    """Shards of W along K, each pruned, one a rank; partial outputs are summed, as those of ``dense_tp_row``."""

    axes = (*PrunedMethod.axes, "combine")


@METHODS.register("pruned_tp_col")
class PrunedColumnParallel(PrunedMethod, ColumnParallel):
    """Shards of W along N, each pruned along K, one a rank; output features are gathered, as in ``dense_tp_col``."""

    axes = (*PrunedMethod.axes, "combine")
