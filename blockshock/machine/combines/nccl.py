"""By the collectives of the process group: NCCL's on GPUs, gloo's on CPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist

from blockshock.machine import torch_internals
from blockshock.machine.borrowed import Borrowed
from blockshock.machine.collectives import Group, all_gather
from blockshock.machine.combines.base import COMBINES, Combine, Later, Part, Place, side_by_side
from blockshock.stages import copied, in_stage, stage


@COMBINES.register("nccl")
class Nccl(Combine):
    """One all-reduce, or one all-gather whose shards are then put side by side: what everybody has today."""

    is_traced = True

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._borrowed = Borrowed(group)

    def sum(self, part: Part) -> torch.Tensor:
        total = part.all()
        if torch.compiler.is_compiling():
            dist.all_reduce(total, group=self._borrowed.group)  # which the compiler knows
        else:
            in_stage("reduce", _add_up, self._borrowed.group, total)
        return total

    def gather(self, part: Part, place: Place = side_by_side) -> torch.Tensor:
        group, shard = self._borrowed.group, part.all()
        stacked = _stacked(shard, group)
        with stage("reduce"):
            all_gather(stacked, shard, group=group)
        return copied(in_stage("layout", place.joined, stacked, group.size()))

    def start_sum(self, part: Part) -> Later:
        total = part.all()
        work = in_stage("reduce", self._borrowed.group.allreduce, [total])

        def finish() -> torch.Tensor:
            in_stage("reduce", work.wait)
            return total

        return finish

    def start_gather(self, part: Part, place: Place = side_by_side) -> Later:
        group, shard = self._borrowed.group, part.all()
        stacked = _stacked(shard, group)
        work = in_stage("reduce", torch_internals.start_gather, group, stacked, shard)

        def finish() -> torch.Tensor:
            in_stage("reduce", work.wait)
            return copied(in_stage("layout", place.joined, stacked, group.size()))

        return finish


_NOW = dist.AllreduceOptions()
"""A sum that what comes next in the stream waits for."""
_NOW.asyncOp = False


def _add_up(group: Group, total: torch.Tensor) -> None:
    """What ``dist.all_reduce`` comes to, in half the steps: a small layer's host would be the bound."""
    work = group.allreduce([total], _NOW)
    if work is not None:  # of gloo, and of what others have for a backend
        work.wait()


def _stacked(shard: torch.Tensor, group: Group) -> torch.Tensor:
    """Where all ranks' shards come, one below the other."""
    return shard.new_empty(group.size() * shard.shape[0], shard.shape[1])
