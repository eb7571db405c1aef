"""W′ in place of W: 2:4, at what loss a pruner can. On one device, or a shard of it on each rank.

Right is what is right for W′. What W′ loses against W is the quality of a row, and no failure.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.machine import Combine, Entry, Exit
from blockshock.matrices import Piece, WeightSource, in_own_order
from blockshock.methods.base import METHODS
from blockshock.methods.dense_single import Single
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.jointly import Jointly
from blockshock.methods.kinds import Promise, Role
from blockshock.methods.layer import Layer
from blockshock.methods.permuted import Order, Permuted, order_bytes
from blockshock.methods.pieces import PieceMethod
from blockshock.methods.product import Weight
from blockshock.methods.tensor_parallel import ColumnParallel, RowParallel
from blockshock.pruning import JoinedWeights, PrunedWeights, pruning_bytes


class PrunedMethod(PieceMethod):
    """Each rank's part of W, pruned by itself and multiplied by a kernel. How ranks agree, another class says.

    Where its pruner permutes the input channels (``permute=yes``), x is gathered in that order first.
    """

    promise, role = Promise.OWN_WEIGHTS, Role.SUBJECT
    axes: ClassVar[tuple[str, ...]] = ("kernel", "pruner", "storage")
    multiple = 4
    entry: Entry = Entry()
    _order: Order | None = None

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if layer.permutation is not None:
            self.permutation, self._order = layer.permutation, Order.of(layer.permutation, self.columns)
            self.entry = Permuted(self.entry, self._order)
        piece = layer.pruned_piece(self.rows, self.columns)
        kernel, shared_N = self._kernel_for(layer, [piece]), self._shared_scales(layer.format, [piece])
        return self._packed(layer, piece, kernel, bias, adds_bias, shared_N)

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        shape = Shape.of(layer.source, ranks)
        rows, columns = cls.part(shape, 0)
        own: WeightSource
        if (rows, columns) == (slice(0, shape.N), slice(0, shape.K)):
            own = layer.pruned(rows, columns)
        else:
            parts = [layer.pruned(*cls.part(shape, rank)) for rank in range(ranks)]
            own = JoinedWeights(parts, int(rows.stop == shape.N), layer.source.bias)
        return in_own_order(own, layer.permutation)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        rows, columns = cls.part(shape, 0)
        N, K = len(range(shape.N)[rows]), len(range(shape.K)[columns])
        packed = cls._estimate(N, K, shape, None if shape.mask is None else shape.mask.part(rows, columns))
        packing = packed.building + PrunedWeights.held_bytes(N, K, shape.itemsize)
        pruning = pruning_bytes(shape.picks.get("pruner", "magnitude"), N, K, shape.K, shape.itemsize)
        held, searching = order_bytes(shape)
        return WeightEstimate(packed.steady + held, max(packing, pruning, searching) + held, packed.trained)

    def tensors(self) -> list[torch.Tensor]:
        return super().tensors() if self._order is None else [*super().tensors(), *self._order.tensors()]


@METHODS.register("pruned")
class Pruned(PrunedMethod, Single):
    """All of W′ on one device, in a sparse kernel's format. Stores N·K/2 kept values, and their positions."""

    axes = (*PrunedMethod.axes, "format")
    joins = True


@METHODS.register("pruned_dense")
class PrunedDense(Pruned):
    """The ablation: W′ stored dense, with its zeros multiplied."""

    role = Role.ABLATION
    axes = ("pruner",)
    otherwise: ClassVar[dict[str, str]] = {"kernel": "dense", "storage": "masked"}


class PrunedShards(Jointly, PrunedMethod):
    """Each rank has a shard, and the ranks agree on y."""

    axes = (*PrunedMethod.axes, "combine", "format")

    def pieces(self, layer: Layer) -> list[Piece]:
        return [layer.pruned_piece(self.rows, self.columns)]

    def conjugates(self, combine: Combine) -> tuple[Entry, Exit]:
        entry, exit = super().conjugates(combine)
        return entry if self._order is None else Permuted(entry, self._order), exit


@METHODS.register("pruned_tp_row")
class PrunedRowParallel(PrunedShards, RowParallel):
    """Shards of W along K, each pruned, one a rank; partial outputs are summed, as those of ``dense_tp_row``."""


@METHODS.register("pruned_tp_col")
class PrunedColumnParallel(PrunedShards, ColumnParallel):
    """Shards of W along N, each pruned along K, one a rank; output features are gathered, as in ``dense_tp_col``."""
