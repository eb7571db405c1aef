"""What a user would pick today: torch's own ``RowwiseParallel`` and ``ColwiseParallel``."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from blockshock.machine import Group
from blockshock.measure import Operand
from blockshock.methods.base import METHODS
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.layer import Layer
from blockshock.methods.tensor_parallel import ColumnParallel, RowParallel, TensorParallel


class _DTensorParallel(TensorParallel):
    instead = "torch's own parallelize_module, with RowwiseParallel() or ColwiseParallel()"
    linear: Any
    rounds_weight_gradients = True

    def _parallelize(self, layer: Layer, w: torch.Tensor, bias: torch.Tensor | None, rowwise: bool) -> None:
        # Imported when the first such layer is built: every rank and every `--help` would pay for it otherwise.
        parallel = importlib.import_module("blockshock.methods.dtensor.linear")
        if layer.training is not None:
            dtype = layer.training.parameter_dtype(w.dtype)
            w, bias = w.to(dtype), None if bias is None else bias.to(dtype)
        self.linear = parallel.ParallelLinear(self.N, self.K, w, bias, self.group, rowwise)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        if shape.training is None:
            return super().estimate(shape)
        elements = shape.N * shape.K // shape.ranks  # of the parameters alone: they are cast for each product
        held = elements * shape.training.parameter_bytes(shape.itemsize)
        return WeightEstimate(held, held + elements * shape.itemsize, elements)

    @property
    def algorithm(self) -> str:
        return "torch DTensor"

    def operands(self) -> tuple[list[Operand], list[Operand] | None]:
        values = self.linear.shard.numel()
        return [Operand(values, values * self.dtype.itemsize)], None

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self.linear(x_BK)


@METHODS.register("dtensor_row")
class DTensorRow(_DTensorParallel):
    """``RowwiseParallel`` with replicated input and output."""

    collectives = RowParallel.collectives

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self._parallelize(layer, layer.source.gather(self.columns), layer.source.bias, rowwise=True)

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        return RowParallel.part(shape, rank)

    @property
    def roundings(self) -> int:
        return self.group.size() + 1  # it adds the bias after the sum

    def place(self, w_NK: torch.Tensor) -> None:
        w_NK[:, self.columns] += self.linear.shard


@METHODS.register("dtensor_col")
class DTensorColumn(_DTensorParallel):
    """``ColwiseParallel`` with replicated input and output."""

    collectives = ColumnParallel.collectives

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        bias = None if layer.source.bias is None else layer.source.bias[self.rows].clone()
        self._parallelize(layer, layer.source.gather(slice(None), rows=self.rows), bias, rowwise=False)

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        return ColumnParallel.part(shape, rank)

    @property
    def grad_roundings(self) -> int:
        return self.group.size()

    def place(self, w_NK: torch.Tensor) -> None:
        w_NK[self.rows] += self.linear.shard
