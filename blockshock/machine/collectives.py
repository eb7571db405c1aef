"""What the methods ask of a process group. Groups of one rank need no communication and get none."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from blockshock.errors import InputError

Group = Any  # a ProcessGroup, or Alone

# The older name warns in torch 2.13, the newer is not there in 2.11.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Alone:
    """The group of one rank, where there is no process group."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def groups_of(group: Any) -> list[Group]:
    """The process groups that a user means: one, or that of each dimension of a DeviceMesh.

    Raises:
        InputError: this is neither.
    """
    if hasattr(group, "get_all_groups"):  # a DeviceMesh, whose import costs a second
        return list(group.get_all_groups())
    if not hasattr(group, "size") or not hasattr(group, "rank"):
        raise InputError(f"group must be a process group or a DeviceMesh, got {type(group).__name__}")
    return [group]


def ranks_of(group: Any) -> Group:
    """The process group that a user means for a layer; None for the default one, or for no group at all.

    A group of one rank is as good as none, and a layer without one can be pickled.

    Raises:
        InputError: this is no process group, nor a DeviceMesh of one dimension.
    """
    if group is None:
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else Alone()
    groups = groups_of(group)
    if len(groups) != 1:
        raise InputError(f"a layer takes a DeviceMesh of one dimension, got {len(groups)}: pick one of it")
    return groups[0] if groups[0].size() > 1 else Alone()


def global_ranks(group: Group) -> tuple[int, ...]:
    """The ranks of a group, as the default group counts them."""
    return (0,) if isinstance(group, Alone) else tuple(dist.get_process_group_ranks(group))


def of_rank_0(tensor: torch.Tensor | None, group: Group) -> torch.Tensor | None:
    """Rank 0's values of a tensor that all ranks have."""
    if tensor is None or group.size() == 1:
        return tensor if tensor is None else tensor.detach()
    same = tensor.detach().clone()
    dist.broadcast(same, dist.get_global_rank(group, 0), group=group)
    return same


def shard(total: int, index: int, count: int, what: str, multiple: int = 1, in_all: int = 1) -> slice:
    """The ``index``-th of ``count`` equal contiguous parts of ``range(total)``.

    Args:
        what: the name of ``total``, for messages.
        in_all: what ``total`` is to be a multiple of for the sake of others; it is not looked at here, but sizes that
            are advised are.

    Raises:
        InputError: there is no such part, or the parts would not be equal, or not multiples of ``multiple``.
    """
    if not 0 <= index < count or multiple < 1 or total < 1:
        raise InputError(f"{what} = {total} has no shard {index} of {count}, of a multiple of {multiple}")
    if total % (count * multiple):
        step = math.lcm(count * multiple, in_all)
        below, above = total // step * step, (total // step + 1) * step
        nearest = f"the nearest that can are {below} and {above}" if below else f"the nearest that can is {above}"
        shards = f"{count} equal shards" if count > 1 else "1 shard"
        shards += f" of a multiple of {multiple}" if multiple > 1 else ""
        raise InputError(f"{what} = {total} cannot be cut into {shards}; {nearest}")
    size = total // count
    return slice(index * size, (index + 1) * size)


def __getattr__(name: str) -> Any:
    """What moved: layers that were pickled name it here."""
    if name in ("ColumnShard", "Entry", "OwnFeatures", "Replicated"):
        return getattr(importlib.import_module("blockshock.machine.conjugates"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
