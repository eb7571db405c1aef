"""By memory that GPUs read of each other: torch's all-reduces, and gathers that read straight into their places.

The part is written where the peers read it. That saves NCCL's copies, and most of its waiting where little is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch

from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import COMBINES, Combine, Later, Part, Place, side_by_side
from blockshock.machine.combines.traced import known
from blockshock.machine.combines.workspace import ALIGNED, workspace_bytes, workspace_for
from blockshock.stages import stage

MOST_BLOCKS = 8
"""In which a part goes through what ranks share; of more it goes by NCCL, whole."""
Take = Callable[[list[torch.Tensor], torch.Tensor], None]
"""Makes some rows of an output of those rows of all ranks' parts."""


class Symmetric(Combine):
    """What these ways share: a workspace, and how a part goes through it."""

    device_types = ("cuda",)

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shared = workspace_for(group, workspace_bytes(elements * dtype.itemsize), device)
        self._beyond = COMBINES.get("nccl")(group, elements, dtype, device)
        self.number = known(self)

    @classmethod
    def held_bytes(cls, size: int, ranks: int) -> int:
        return workspace_bytes(size)

    def _is_beyond(self, part: Part) -> bool:
        """Whether so many more tokens come than it was made for that their product would read W too often."""
        return part.tokens > MOST_BLOCKS * self._shared.rows(part.features, part.dtype)

    def _is_one_block(self, part: Part) -> bool:
        """Whether all of it goes through at once; of several, the next is made when the one before is through."""
        return part.tokens <= self._shared.rows(part.features, part.dtype)

    def _blocks(self, part: Part) -> Iterator[slice]:
        """The rows that go through together: as many in each block, for a product of few rows reads W for little."""
        step = _evenly(part.tokens, self._shared.rows(part.features, part.dtype))
        for start in range(0, part.tokens, step):
            yield slice(start, min(start + step, part.tokens))

    def _views(self, part: Part, rows: slice) -> list[torch.Tensor]:
        """Such rows of all ranks' parts, in rank order; this rank's own is to be written."""
        shape = rows.stop - rows.start, part.features
        return [self._shared.view(rank, shape, part.dtype) for rank in range(self._shared.ranks)]

    def _through(self, part: Part, features: int, take: Take) -> torch.Tensor:
        """(B, features), of which ``take`` makes the rows of a block out of all ranks' views."""
        whole = part.empty(features)
        self._shared.enter()
        for rows in self._blocks(part):
            views = self._views(part, rows)
            part.make(None if rows == slice(0, part.tokens) else rows, views[self._shared.rank])
            with stage("reduce"):
                take(views, whole[rows])
        return whole

    def _started(self, part: Part, features: int, take: Take) -> Later:
        """The same of one block, beside what is asked for until it is waited for."""
        whole = part.empty(features)
        self._shared.enter()
        views = self._views(part, slice(0, part.tokens))
        part.make(None, views[self._shared.rank])
        with stage("reduce"), self._shared.beside():
            take(views, whole)

        def finish() -> torch.Tensor:
            with stage("reduce"):
                self._shared.wait()
            return whole

        return finish

    def _add(self, views: list[torch.Tensor], total: torch.Tensor) -> None:
        """The sum of all views to ``total``; all have been read when it is there."""
        raise NotImplementedError

    def _placing(self, place: Place) -> Take:
        """Every view to its place, likewise."""

        def take(views: list[torch.Tensor], whole: torch.Tensor) -> None:
            self._shared.barrier()
            place.put(views, whole)
            self._shared.barrier()

        return take

    def sum(self, part: Part) -> torch.Tensor:
        return self._beyond.sum(part) if self._is_beyond(part) else self._sum(part)

    def gather(self, part: Part, place: Place = side_by_side) -> torch.Tensor:
        return self._beyond.gather(part, place) if self._is_beyond(part) else self._gather(part, place)

    def _sum(self, part: Part) -> torch.Tensor:
        return self._through(part, part.features, self._add)

    def _gather(self, part: Part, place: Place) -> torch.Tensor:
        return self._through(part, self._shared.ranks * part.features, self._placing(place))

    def start_sum(self, part: Part) -> Later:
        if self._is_beyond(part):
            return self._beyond.start_sum(part)
        return self._start_sum(part) if self._is_one_block(part) else _there(self._sum(part))

    def start_gather(self, part: Part, place: Place = side_by_side) -> Later:
        if self._is_beyond(part):
            return self._beyond.start_gather(part, place)
        return self._start_gather(part, place) if self._is_one_block(part) else _there(self._gather(part, place))

    def _start_sum(self, part: Part) -> Later:
        return self._started(part, part.features, self._add)

    def _start_gather(self, part: Part, place: Place) -> Later:
        return self._started(part, self._shared.ranks * part.features, self._placing(place))


def _there(found: torch.Tensor) -> Later:
    return lambda: found


def _evenly(tokens: int, most: int) -> int:
    """Rows of each of the fewest blocks that hold no more than ``most``, aligned as that is."""
    blocks = -(-tokens // most)
    return -(-tokens // (blocks * ALIGNED)) * ALIGNED


class _TorchSum(Symmetric):
    """A sum by one of torch's operators, which add in rank order; ``shots`` is its name."""

    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = (torch.bfloat16, torch.float32)
    shots: ClassVar[str]

    def _add(self, views: list[torch.Tensor], total: torch.Tensor) -> None:
        mine = views[self._shared.rank]
        if mine.nbytes % 4 == 0:
            self._shared.add_up(self.shots, mine, total)
            return
        # It reads four bytes at a time: one element more, of whatever is there.
        longer = self._shared.view(self._shared.rank, (mine.numel() + 1,), mine.dtype)
        sums = torch.empty_like(longer)
        self._shared.add_up(self.shots, longer, sums)
        total.copy_(sums[:-1].view_as(total))


@COMBINES.register("one_shot")
class OneShot(_TorchSum):
    """Each rank reads all parts and adds them up for itself: least waiting, for few bytes."""

    shots = "one_shot_all_reduce_out"


@COMBINES.register("two_shot")
class TwoShot(_TorchSum):
    """Each rank adds up its share of the elements, then reads the others' sums. Of 2, 4 or 8 ranks."""

    shots = "two_shot_all_reduce_out"

    @classmethod
    def unsuitable(cls, ranks: int | None, tokens: int, **parameters: Any) -> str | None:
        return None if ranks in (None, 1, 2, 4, 8) else f"torch adds in two shots over 2, 4 or 8 ranks, not {ranks}"


@COMBINES.register("peer_add")
class PeerAdd(Symmetric):
    """Each rank adds up all parts in rank order, the peers' where they lie: as one_shot does, by the whole GPU.

    Torch's one shot is made for few bytes, and takes few multiprocessors; of many, these read at the rate of the links.
    """

    def _add(self, views: list[torch.Tensor], total: torch.Tensor) -> None:
        self._shared.barrier()
        add_in_order(views, total)
        self._shared.barrier()


def add_in_order(parts: list[torch.Tensor], total: torch.Tensor) -> None:
    """The sum of two parts or more to ``total``: the same bits on every rank."""
    torch.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        total += part
