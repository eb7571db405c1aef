"""How ranks make one output of their parts: a sum, or feature shards side by side; differentiable."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from blockshock.machine.collectives import Group, all_gather, side_by_side
from blockshock.stages import stage


def sum_over_ranks(part: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum of all ranks' contiguous parts, written over ``part``; in backward the identity."""
    if part.requires_grad and group.size() > 1:
        return _SumOverRanks.apply(part, group)
    return _all_reduce(part, group)


def gather_features(part_BS: torch.Tensor, group: Group) -> torch.Tensor:
    """All ranks' (B, S) feature shards side by side in rank order, (B, G·S); in backward each rank takes its own."""
    if part_BS.requires_grad and group.size() > 1:
        return _GatherFeatures.apply(part_BS, group)
    return _all_gather_features(part_BS, group)


def _all_reduce(part: torch.Tensor, group: Group) -> torch.Tensor:
    if group.size() > 1 and len(part):
        with stage("reduce"):
            dist.all_reduce(part, group=group)
    return part


def _all_gather_features(part_BS: torch.Tensor, group: Group) -> torch.Tensor:
    if group.size() == 1:
        return part_BS
    if not len(part_BS):
        return part_BS.new_empty(0, group.size() * part_BS.shape[1])
    with stage("reduce"):
        gathered = part_BS.new_empty(group.size() * part_BS.shape[0], part_BS.shape[1])
        all_gather(gathered, part_BS, group=group)
    return side_by_side(gathered, group)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Group) -> torch.Tensor:
        # The sum may be written over the part without autograd's knowledge: no product needs its output in backward.
        total = _all_reduce(part.data, group)
        # Compiled, torch 2.11 gives what copy_ returns as an output too. Were that this tensor, it would get the
        # gradient, and the part zeros.
        return total.view_as(total) if torch.compiler.is_compiling() else total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part_BS: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.first, ctx.features = group.rank() * part_BS.shape[1], part_BS.shape[1]
        return _all_gather_features(part_BS, group)

    @staticmethod
    def backward(ctx: Any, grad_BN: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad_BN.narrow(1, ctx.first, ctx.features), None
