"""torch's own tensor parallelism around one linear layer: ``parallelize_module`` on an ``nn.Linear``.

DTensor may return an asynchronous tensor; it is waited for inside the pass, forward and backward, or the collective
would not be in the time. ``torch.distributed.tensor`` takes over a second to import: only who needs it imports this.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from blockshock.machine import Group, torch_internals
from blockshock.stages import stage


class ParallelLinear(nn.Module):
    """An ``nn.Linear`` made of local shards, with replicated input and output; W is never whole on a rank.

    What DTensor does beside the product cannot be told apart from outside: all of it counts as the stage ``reduce``.

    Args:
        w: this rank's shard, (N, K/G) rowwise, (N/G, K) colwise.
        bias: whole rowwise, this rank's shard colwise.
    """

    def __init__(self, N: int, K: int, w: torch.Tensor, bias: torch.Tensor | None, group: Group, rowwise: bool) -> None:
        super().__init__()
        mesh = _mesh(w.device.type, group)
        linear = _StagedLinear(K, N, bias=bias is not None, device="meta", dtype=w.dtype)
        w_placement, bias_placement = (Shard(1), Replicate()) if rowwise else (Shard(0), Shard(0))
        linear.weight = nn.Parameter(DTensor.from_local(w, mesh, [w_placement], run_check=False))
        if bias is not None:
            linear.bias = nn.Parameter(DTensor.from_local(bias, mesh, [bias_placement], run_check=False))
        style = (
            RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
            if rowwise
            else ColwiseParallel(output_layouts=Replicate())
        )
        self.linear = parallelize_module(linear, mesh, style)

    @property
    def shard(self) -> torch.Tensor:
        """This rank's part of W."""
        weight = self.linear.weight
        assert isinstance(weight, DTensor)
        return weight.to_local().detach()

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("reduce"):
            if not torch.is_grad_enabled():
                return torch_internals.arrived(self.linear(x_BK))
            return _Arrived.apply(self.linear(_Arrived.apply(x_BK)))


class _StagedLinear(nn.Linear):
    """Multiplies in the dtype of x, as under ``torch.autocast``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


@cache
def _mesh(device_type: str, group: Group) -> DeviceMesh:
    return DeviceMesh.from_group(group, device_type)


class _Arrived(torch.autograd.Function):
    """The tensor, once it is there; its gradient likewise."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        there = torch_internals.arrived(x)
        return there.view_as(there)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        with stage("reduce"):
            return torch_internals.arrived(grad)
