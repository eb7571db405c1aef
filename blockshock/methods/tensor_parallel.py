"""Tensor parallelism by hand: dense shards of W, one a rank (Shoeybi et al., Megatron-LM, arXiv 1909.08053, §3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from blockshock.machine import Combine, Entry, Exit, Gathered, Group, OwnFeatures, Replicated, Summed, shard
from blockshock.methods.base import METHODS, Method
from blockshock.methods.combined import Combined
from blockshock.methods.dense import Dense
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.in_formats import InFormats
from blockshock.methods.kinds import Role
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight, product


class TensorParallel(Method):
    role = Role.RIVAL
    sharded = True
    multiple: ClassVar[int] = 1
    """Of columns, that a shard holds whole."""

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        return WeightEstimate.dense(shape.N * shape.K // shape.ranks, shape)

    def _hold_as_own(self, weight: Weight) -> None:
        """Under a name of this rank's own: torch.distributed.checkpoint takes what has one name for one tensor."""
        self.add_module(f"weight_{self.group.rank()}" if self.group.size() > 1 else "weight", weight)
        vars(self)["weight"] = weight

    def split_parameters(self) -> Iterable[nn.Parameter]:
        parameters = self.weight.named_parameters()
        return [parameter for name, parameter in parameters if name != "bias" or self.splits_bias]


class RowParallel(Combined, InFormats, TensorParallel):
    """Shards of W along K, one a rank; partial outputs are summed. Forward moves B·N elements in one all-reduce,
    backward gathers B·K of grad_X. The bias joins rank 0's product, and is trained on every rank.
    """

    axes: ClassVar[tuple[str, ...]] = ("combine", "format")
    collectives = ("all_reduce", "all_gather")
    adds_parts = True

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.build(layer)

    def hold_own(self, layer: Layer) -> None:
        self._hold_as_own(self.hold(layer, layer.source.bias, adds_bias=self.group.rank() == 0))
        self._mark_split()

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        # The suite's own layers all have a K of groups of four, whichever the method.
        return slice(0, shape.N), shard(shape.K, rank, shape.ranks, "K", cls.multiple, in_all=4)

    @property
    def roundings(self) -> int:
        return super().roundings + self.group.size() - 1

    def conjugates(self, combine: Combine) -> tuple[Entry, Exit]:
        return OwnFeatures(combine, self.columns, self.K), Summed(combine)

    def multiply(self, x_BK: torch.Tensor, exit: Exit) -> torch.Tensor:
        return product(x_BK, self.weight, self.entry, exit)


@METHODS.register("dense_tp_row")
class DenseRowParallel(Dense, RowParallel):
    """Shards of W along K, one a rank; partial outputs are summed. Stores W[:, shard] (N × K/G)."""


class ColumnParallel(Combined, InFormats, TensorParallel):
    """Shards of W along N, one a rank; output features are gathered. Forward moves B·N elements in one all-gather,
    then puts them in (B, N) order; backward all-reduces B·K elements of grad_X.
    """

    axes: ClassVar[tuple[str, ...]] = ("combine", "format")
    collectives = ("all_gather", "all_reduce")

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.build(layer)

    def hold_own(self, layer: Layer) -> None:
        self._hold_as_own(self.hold(layer, None if layer.source.bias is None else layer.source.bias[self.rows]))
        self._mark_split()

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        return shard(shape.N, rank, shape.ranks, "N"), slice(0, shape.K)

    @property
    def grad_roundings(self) -> int:
        return self.group.size()

    def conjugates(self, combine: Combine) -> tuple[Entry, Exit]:
        return Replicated(combine), Gathered(combine, self.rows, self.N)

    def multiply(self, x_BK: torch.Tensor, exit: Exit) -> torch.Tensor:
        return product(x_BK, self.weight, self.entry, exit)


@METHODS.register("dense_tp_col")
class DenseColumnParallel(Dense, ColumnParallel):
    """Shards of W along N, one a rank; output features are gathered. Stores W[shard] (N/G × K)."""
