"""What a user would pick today: torch's own ``RowwiseParallel`` and ``ColwiseParallel``."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from blockshock.collectives import Group, shard
from blockshock.methods.base import METHODS, Layer, Shape
from blockshock.methods.tensor_parallel import TensorParallel


class _DTensorParallel(TensorParallel):
    linear: nn.Module

    def _parallelize(self, w: torch.Tensor, bias: torch.Tensor | None, rowwise: bool) -> None:
        # Imported when the first such layer is built: every rank and every `--help` would pay for it otherwise.
        parallel = importlib.import_module("blockshock.dtensor_linear")
        self.linear = parallel.ParallelLinear(self.N, self.K, w, bias, self.group, rowwise)

    @property
    def algorithm(self) -> str:
        return "torch DTensor"

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        y_BN: torch.Tensor = self.linear(x_BK)
        return y_BN


@METHODS.register("dtensor_row")
class DTensorRow(_DTensorParallel):
    """``RowwiseParallel`` with replicated input and output."""

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        columns = shard(self.K, group.rank(), group.size(), "K")
        self._parallelize(layer.source.gather(columns), layer.source.bias, rowwise=True)

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.K, 0, shape.ranks, "K")

    @property
    def roundings(self) -> int:
        return self.group.size() + 1  # it adds the bias after the sum


@METHODS.register("dtensor_col")
class DTensorColumn(_DTensorParallel):
    """``ColwiseParallel`` with replicated input and output."""

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        rows = shard(self.N, group.rank(), group.size(), "N")
        bias = None if layer.source.bias is None else layer.source.bias[rows].clone()
        self._parallelize(layer.source.gather(slice(None), rows=rows), bias, rowwise=False)

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.N, 0, shape.ranks, "N")

    @property
    def grad_roundings(self) -> int:
        return self.group.size()
