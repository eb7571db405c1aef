"""Tensor parallelism by hand: dense shards of W, one a rank (Shoeybi et al., Megatron-LM, arXiv 1909.08053, §3)."""

from __future__ import annotations

import torch
from torch import nn

from blockshock.autograd import linear
from blockshock.collectives import Group, gather_features, own_features, replicated, shard, sum_over_ranks
from blockshock.methods.base import METHODS, Layer, Method, Shape, WeightEstimate


class TensorParallel(Method):
    bias: torch.Tensor | None

    @classmethod
    def estimate(cls, shape: Shape, kernel: str) -> WeightEstimate:
        size = shape.N * shape.K // shape.ranks * shape.itemsize
        return WeightEstimate(size, size)


@METHODS.register("dense_tp_row")
class RowParallel(TensorParallel):
    """Shards of W along K, one a rank; partial outputs are summed.

    Stores w_NK[:, shard] (N × K/G). Forward moves B·N elements in one all-reduce, backward gathers B·K of grad_X. The
    bias joins rank 0's product.
    """

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        columns = shard(self.K, group.rank(), group.size(), "K")
        self.w_NS = nn.Parameter(layer.source.gather(columns))
        self.register_buffer("bias", layer.source.bias if group.rank() == 0 else None)

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.K, 0, shape.ranks, "K")

    @property
    def roundings(self) -> int:
        return self.group.size()

    def enter(self, x_BK: torch.Tensor) -> torch.Tensor:
        return own_features(x_BK, self.group)

    def partial(self, x_BS: torch.Tensor) -> torch.Tensor:
        return linear(x_BS, self.w_NS, self.bias)

    def combine(self, part_BN: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(part_BN, self.group)


@METHODS.register("dense_tp_col")
class ColumnParallel(TensorParallel):
    """Shards of W along N, one a rank; output features are gathered.

    Stores w_NK[shard] (N/G × K). Forward moves B·N elements in one all-gather, then puts them in (B, N)
    order; backward all-reduces B·K elements of grad_X.
    """

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        rows = shard(self.N, group.rank(), group.size(), "N")
        self.w_SK = nn.Parameter(layer.source.gather(slice(None), rows=rows))
        self.register_buffer("bias", None if layer.source.bias is None else layer.source.bias[rows].clone())

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.N, 0, shape.ranks, "N")

    @property
    def grad_roundings(self) -> int:
        return self.group.size()

    def enter(self, x_BK: torch.Tensor) -> torch.Tensor:
        return replicated(x_BK, self.group)

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return linear(x_BK, self.w_SK, self.bias)

    def combine(self, part_BS: torch.Tensor) -> torch.Tensor:
        return gather_features(part_BS, self.group)
