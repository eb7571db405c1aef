"""What the methods ask of a process group. Groups of one rank need no communication and get none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from blockshock.errors import InputError
from blockshock.stages import copied, stage

Group = dist.ProcessGroup

# The older name warns in torch 2.13, the newer is not there in 2.11.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def shard(total: int, index: int, count: int, what: str, multiple: int = 1) -> slice:
    """The ``index``-th of ``count`` equal contiguous parts of ``range(total)``.

    Raises:
        InputError: the parts would not be equal, or not multiples of ``multiple``.
    """
    if total % (count * multiple):
        step = math.lcm(count * multiple, 4)  # K must be a multiple of four whatever the shards
        raise InputError(
            f"{what} = {total} cannot be cut into {count} equal shards of a multiple of {multiple}; "
            f"the nearest that can is {max(total // step, 1) * step}"
        )
    size = total // count
    return slice(index * size, (index + 1) * size)


def sum_over_ranks(part: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum of all ranks' contiguous parts, written over ``part``; in backward the identity."""
    if part.requires_grad and group.size() > 1:
        total: torch.Tensor = _SumOverRanks.apply(part, group)
        return total
    return _all_reduce(part, group)


def replicated(x: torch.Tensor, group: Group) -> torch.Tensor:
    """An input that every rank holds whole, as it is; in backward the ranks' gradients are summed."""
    if x.requires_grad and group.size() > 1:
        same: torch.Tensor = _Replicated.apply(x, group)
        return same
    return x


def gather_features(part_BS: torch.Tensor, group: Group) -> torch.Tensor:
    """All ranks' (B, S) feature shards side by side in rank order, (B, G·S); in backward each rank takes its own."""
    if part_BS.requires_grad and group.size() > 1:
        whole: torch.Tensor = _GatherFeatures.apply(part_BS, group)
        return whole
    return _all_gather_features(part_BS, group)


def own_features(x_BK: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's feature shard (B, K/G) of a replicated input, a view; in backward the shards are gathered."""
    if x_BK.requires_grad and group.size() > 1:
        own: torch.Tensor = _OwnFeatures.apply(x_BK, group)
        return own
    return _own_slice(x_BK, group)


def _own_slice(x_BK: torch.Tensor, group: Group) -> torch.Tensor:
    return x_BK[:, shard(x_BK.shape[1], group.rank(), group.size(), "K")]


def _all_reduce(part: torch.Tensor, group: Group) -> torch.Tensor:
    if group.size() > 1:
        with stage("reduce"):
            dist.all_reduce(part, group=group)
    return part


def _all_gather_features(part_BS: torch.Tensor, group: Group) -> torch.Tensor:
    if group.size() == 1:
        return part_BS
    with stage("reduce"):
        gathered = part_BS.new_empty(group.size() * part_BS.shape[0], part_BS.shape[1])
        _all_gather(gathered, part_BS, group=group)
    with stage("layout"):
        return copied(torch.cat(gathered.chunk(group.size()), dim=1))


def slowest_of_ranks(seconds: list[float], device: torch.device, group: Group) -> list[float]:
    """Elementwise maximum over the ranks, the same list on every rank."""
    times = torch.tensor(seconds, dtype=torch.float64, device=device)
    if group.size() > 1:
        dist.all_reduce(times, op=dist.ReduceOp.MAX, group=group)
    return times.tolist()


def aligner(device: torch.device, group: Group) -> Callable[[], None]:
    """A call that all ranks pass together: on CUDA in stream order (it can be captured), on a CPU in program order."""
    token = torch.zeros(1, device=device)

    def align() -> None:
        if group.size() > 1:
            dist.all_reduce(token, group=group)

    return align


# The four below are the conjugate pairs of Megatron-LM (Shoeybi et al., arXiv 1909.08053, §3): what is a collective
# in one direction is local in the other.


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Group) -> torch.Tensor:
        # The sum may be written over the part without autograd's knowledge: no product needs its output in backward.
        return _all_reduce(part.data, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        # A copy if need be: autograd may hand the same gradient to others, and the sum is written over it.
        return _all_reduce(grad.clone(memory_format=torch.contiguous_format), ctx.group), None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part_BS: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group, ctx.features = group, part_BS.shape[1]
        return _all_gather_features(part_BS, group)

    @staticmethod
    def backward(ctx: Any, grad_BN: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad_BN.narrow(1, ctx.group.rank() * ctx.features, ctx.features), None


class _OwnFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BK: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return _own_slice(x_BK, group)

    @staticmethod
    def backward(ctx: Any, grad_BS: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _all_gather_features(grad_BS.contiguous(), ctx.group), None
