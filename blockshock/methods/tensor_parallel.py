"""Tensor parallelism by hand: dense shards of W, one a rank (Shoeybi et al., Megatron-LM, arXiv 1909.08053, §3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.collectives import Group, gather_features, shard, sum_over_ranks
from blockshock.methods.base import METHODS, Layer, Method, Shape, WeightEstimate
from blockshock.stages import stage


class TensorParallel(Method):
    bias: torch.Tensor | None

    @classmethod
    def estimate(cls, shape: Shape, kernel: str) -> WeightEstimate:
        size = shape.N * shape.K // shape.ranks * shape.itemsize
        return WeightEstimate(size, size)


@METHODS.register("dense_tp_row")
class RowParallel(TensorParallel):
    """Shards of W along K, one a rank; partial outputs are summed.

    Stores w_NK[:, shard] (N × K/G). Forward moves B·N elements in one all-reduce. The bias joins rank 0's product.
    """

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.columns = shard(self.K, group.rank(), group.size(), "K")
        self.w_NS = nn.Parameter(layer.source.gather(self.columns))
        self.register_buffer("bias", layer.source.bias if group.rank() == 0 else None)

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.K, 0, shape.ranks, "K")

    @property
    def roundings(self) -> int:
        return self.group.size()

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            return F.linear(x_BK[:, self.columns], self.w_NS, self.bias)

    def combine(self, part_BN: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(part_BN, self.group)


@METHODS.register("dense_tp_col")
class ColumnParallel(TensorParallel):
    """Shards of W along N, one a rank; output features are gathered.

    Stores w_NK[shard] (N/G × K). Forward moves B·N elements in one all-gather, then puts them in (B, N) order.
    """

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        rows = shard(self.N, group.rank(), group.size(), "N")
        self.w_SK = nn.Parameter(layer.source.gather(slice(None), rows=rows))
        self.register_buffer("bias", None if layer.source.bias is None else layer.source.bias[rows].clone())

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.N, 0, shape.ranks, "N")

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            return F.linear(x_BK, self.w_SK, self.bias)

    def combine(self, part_BS: torch.Tensor) -> torch.Tensor:
        return gather_features(part_BS, self.group)
