"""What the methods ask of a process group. Groups of one rank need no communication and get none."""

from __future__ import annotations

from collections.abc import Callable

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
        raise InputError(
            f"{what} = {total} cannot be cut into {count} equal shards of a multiple of {multiple}; "
            f"the nearest that can is {max(total // (count * multiple), 1) * count * multiple}"
        )
    size = total // count
    return slice(index * size, (index + 1) * size)


def sum_over_ranks(part: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum of all ranks' contiguous parts, written over ``part``: the stage ``reduce``."""
    if group.size() > 1:
        with stage("reduce"):
            dist.all_reduce(part, group=group)
    return part


def gather_features(part_BS: torch.Tensor, group: Group) -> torch.Tensor:
    """All ranks' (B, S) feature shards side by side in rank order, (B, G·S): the stages ``reduce`` and ``layout``."""
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
