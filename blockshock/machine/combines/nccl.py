"""By the collectives of the process group: NCCL's on GPUs, gloo's on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from blockshock.machine.borrowed import Borrowed
from blockshock.machine.collectives import Group, all_gather
from blockshock.machine.combines.base import COMBINES, Combine, Later, Part, Place, side_by_side
from blockshock.stages import copied, stage


@COMBINES.register("nccl")
class Nccl(Combine):
    """One all-reduce, or one all-gather whose shards are then put side by side: what everybody has today."""

    is_traced = True

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._borrowed = Borrowed(group)

    def sum(self, part: Part) -> torch.Tensor:
        total = part.all()
        with stage("reduce"):
            dist.all_reduce(total, group=self._borrowed.group)
        return total

    def gather(self, part: Part, place: Place = side_by_side) -> torch.Tensor:
        shards, gathered = part.all(), self._gathered(part)
        with stage("reduce"):
            all_gather(gathered, shards, group=self._borrowed.group)
        return self._placed(gathered, part, place)

    def start_sum(self, part: Part) -> Later:
        total = part.all()
        return _started(dist.all_reduce, (total,), self._borrowed.group, lambda: total)

    def start_gather(self, part: Part, place: Place = side_by_side) -> Later:
        shards, gathered = part.all(), self._gathered(part)
        placed = lambda: self._placed(gathered, part, place)  # noqa: E731
        return _started(all_gather, (gathered, shards), self._borrowed.group, placed)

    def _gathered(self, part: Part) -> torch.Tensor:
        """Where all ranks' shards come, one below the other."""
        size = self._borrowed.group.size() * part.tokens, part.features
        return torch.empty(size, dtype=part.dtype, device=part.device)

    def _placed(self, gathered: torch.Tensor, part: Part, place: Place) -> torch.Tensor:
        shards = list(gathered.chunk(self._borrowed.group.size()))
        whole = part.empty(len(shards) * part.features)
        with stage("layout"):
            place(shards, copied(whole))
        return whole


def _started(collective: Callable[..., Any], tensors: tuple[torch.Tensor, ...], group: Group, result: Later) -> Later:
    if torch.compiler.is_compiling():
        # It takes no asynchronous collective, and orders those it has by itself.
        collective(*tensors, group=group)
        return result
    with stage("reduce"):
        work = collective(*tensors, group=group, async_op=True)

    def finish() -> torch.Tensor:
        with stage("reduce"):
            work.wait()
        return result()

    return finish
