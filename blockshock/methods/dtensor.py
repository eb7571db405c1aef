"""What a user would pick today: torch's own tensor parallelism, ``parallelize_module`` on an ``nn.Linear``.

The module is built from local shards, so that W is never whole on a rank. DTensor may return an asynchronous tensor;
it is waited for inside the forward pass, or the collective would not be in the time. DTensor's own collectives and
input sharding cannot be told apart from outside: all that is not the product counts as reduce.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from blockshock.collectives import Group, shard
from blockshock.methods.base import METHODS, Layer, Shape
from blockshock.methods.tensor_parallel import TensorParallel
from blockshock.stages import stage


class _StagedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            return super().forward(x)


def _waited(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.wait() if isinstance(tensor, AsyncCollectiveTensor) else tensor


class _WaitForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:
        return _waited(y)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad


class _WaitBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        with stage("reduce"):
            return _waited(grad)


@cache
def _mesh(device_type: str, group: Group) -> DeviceMesh:
    return DeviceMesh.from_group(group, device_type)


class _DTensorParallel(TensorParallel):
    """An ``nn.Linear`` whose parameters are DTensors."""

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        mesh = _mesh(self.device.type, group)
        linear = _StagedLinear(self.K, self.N, bias=layer.source.bias is not None, device="meta", dtype=self.dtype)
        w, weight_placement, bias, bias_placement = self._shards(layer, group)
        linear.weight = nn.Parameter(DTensor.from_local(w, mesh, [weight_placement], run_check=False))
        if bias is not None:
            linear.bias = nn.Parameter(DTensor.from_local(bias, mesh, [bias_placement], run_check=False))
        self.linear = parallelize_module(linear, mesh, self._style())

    def _shards(self, layer: Layer, group: Group) -> tuple[torch.Tensor, Placement, torch.Tensor | None, Placement]:
        raise NotImplementedError

    def _style(self) -> ParallelStyle:
        raise NotImplementedError

    @property
    def algorithm(self) -> str:
        return "torch DTensor"

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("reduce"):
            if not x_BK.requires_grad:
                return _waited(self.linear(x_BK))
            y_BN: torch.Tensor = _WaitForward.apply(self.linear(_WaitBackward.apply(x_BK)))
            return y_BN


@METHODS.register("dtensor_row")
class DTensorRow(_DTensorParallel):
    """``RowwiseParallel`` with replicated input and output."""

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.K, 0, shape.ranks, "K")

    @property
    def roundings(self) -> int:
        return self.group.size() + 1  # it adds the bias after the sum

    def _shards(self, layer: Layer, group: Group) -> tuple[torch.Tensor, Placement, torch.Tensor | None, Placement]:
        columns = shard(self.K, group.rank(), group.size(), "K")
        return layer.source.gather(columns), Shard(1), layer.source.bias, Replicate()

    def _style(self) -> ParallelStyle:
        return RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())


@METHODS.register("dtensor_col")
class DTensorColumn(_DTensorParallel):
    """``ColwiseParallel`` with replicated input and output."""

    @property
    def grad_roundings(self) -> int:
        return self.group.size()

    @classmethod
    def check(cls, shape: Shape) -> None:
        shard(shape.N, 0, shape.ranks, "N")

    def _shards(self, layer: Layer, group: Group) -> tuple[torch.Tensor, Placement, torch.Tensor | None, Placement]:
        rows = shard(self.N, group.rank(), group.size(), "N")
        bias = None if layer.source.bias is None else layer.source.bias[rows].clone()
        return layer.source.gather(slice(None), rows=rows), Shard(0), bias, Shard(0)

    def _style(self) -> ParallelStyle:
        return ColwiseParallel(output_layouts=Replicate())
