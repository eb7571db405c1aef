"""In row chunks: a chunk is under way to the peers while the next one is computed."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import COMBINES, Later, Part, Place
from blockshock.machine.combines.symmetric import PeerAdd, Take, add_in_order
from blockshock.stages import stage

LEAST_ROWS = 64
"""Of a chunk: a product of fewer takes as long."""
_MULTIPLE = 16
"""The rows of each chunk but the last are a multiple of it: others some kernels copy, to fill them up."""


@COMBINES.register("overlap")
class Overlap(PeerAdd):
    """Peers' chunks are copied by a second stream, beside the product of the next, and added up in rank order.

    Of two ranks each copies all of the other's part. Of more that would be a part of each peer: there each adds up its
    share of a chunk's rows, and the others copy the sums one product later (a reduce-scatter and an all-gather, as in
    Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005, §4.5).

    The ranks meet before the next product is begun: it takes all multiprocessors for itself, and a barrier that is not
    through by then, with all that waits for it, would come behind it. For the same reason what runs beside a product
    is copies, by copy engines; what is added, or put in its place, is local by then. Peers' rows of the last chunk are
    read where they lie, for nothing is left to be copied beside. Of what is started, and waited for later, there is one
    chunk, all of it copied beside the work between.

    Args:
        chunks: of the rows of a part.
    """

    is_hidden = True
    variants = ("overlap:chunks=4",)

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device, chunks: int = 2) -> None:
        self.check(chunks)
        super().__init__(group, elements, dtype, device)
        self._chunks = chunks

    @classmethod
    def check(cls, chunks: int = 2, **parameters: Any) -> None:
        if not 2 <= chunks <= 64:
            raise InputError(f"combine overlap takes 2 to 64 chunks, got chunks={chunks}")

    @classmethod
    def unsuitable(cls, ranks: int | None, tokens: int, chunks: int = 2, **parameters: Any) -> str | None:
        if tokens >= LEAST_ROWS * chunks:
            return None
        return f"overlaps {chunks} chunks of at least {LEAST_ROWS} tokens, there are {tokens}: pick another combine"

    def _sum(self, part: Part) -> torch.Tensor:
        total = part.empty(part.features)
        for rows in self._blocks(part):
            views = self._views(part, rows)
            self._shared.enter()
            if len(views) == 2:
                self._take_chunks(part, rows, views, add_in_order, total[rows])
            else:
                self._add_shares(part, rows, views, total[rows])
            self._leave()
        return total

    def _gather(self, part: Part, place: Place) -> torch.Tensor:
        whole = part.empty(self._shared.ranks * part.features)
        for rows in self._blocks(part):
            views = self._views(part, rows)
            self._shared.enter()
            self._take_chunks(part, rows, views, place.put, whole[rows])
            self._leave()
        return whole

    def _take_chunks(self, part: Part, rows: slice, views: list[torch.Tensor], take: Take, out: torch.Tensor) -> None:
        """``take`` makes the rows of each chunk out of all ranks' views."""
        *others, last = self._split(rows)
        for chunk in (*others, last):
            self._multiply(part, rows, chunk, views)
            with stage("reduce"):
                self._shared.barrier()
                with nullcontext() if chunk is last else self._shared.beside():
                    take(self._read(views, chunk, beside=chunk is not last), out[chunk])

    def _start_sum(self, part: Part) -> Later:
        return self._copied(part, part.features, add_in_order)

    def _start_gather(self, part: Part, place: Place) -> Later:
        return self._copied(part, self._shared.ranks * part.features, place.put)

    def _copied(self, part: Part, features: int, take: Take) -> Later:
        """Peers' parts are copied beside what is asked for until it is waited for; then ``take`` makes an output of
        all ranks'."""
        rows = slice(0, part.tokens)
        whole, views = part.empty(features), self._views(part, rows)
        self._shared.enter()
        part.make(None, views[self._shared.rank])
        with stage("reduce"):
            self._shared.barrier()
            with self._shared.beside():
                parts = self._read(views, rows, beside=True)
                self._shared.barrier()

        def finish() -> torch.Tensor:
            with stage("reduce"):
                with self._shared.beside():
                    take(parts, whole)
                self._shared.wait()
            return whole

        return finish

    def _add_shares(self, part: Part, rows: slice, views: list[torch.Tensor], total: torch.Tensor) -> None:
        """Of each chunk this rank's share, then the peers' sums of theirs.

        A chunk is added up beside the next product, and ranks learn of it as they meet after the product that follows
        that one: by then it is done, and no product has to wait. After the last, all chunks before it are waited for.
        """
        chunks, brought = self._split(rows), 0
        added: list[torch.cuda.Event] = []
        for index, chunk in enumerate(chunks):
            self._multiply(part, rows, chunk, views)
            is_last = index == len(chunks) - 1
            with stage("reduce"):
                known = max(index if is_last else index - 1, 0)
                if known:
                    self._shared.wait_for(added[known - 1])
                self._shared.barrier()
                with self._shared.beside():
                    for earlier in chunks[brought:known]:
                        self._bring(views, earlier, total)
                    if not is_last:
                        self._add_share(views, chunk, total, beside=True)
                        added.append(self._shared.mark())
                if is_last:
                    self._add_share(views, chunk, total, beside=False)
                brought = known
        with stage("reduce"):
            self._shared.wait()
            self._shared.barrier()
            self._bring(views, chunks[-1], total)

    def _add_share(self, views: list[torch.Tensor], chunk: slice, total: torch.Tensor, beside: bool) -> None:
        """The sum of this rank's share, to ``total`` and to where peers read it: in their parts no rank but this one
        reads these rows."""
        share = self._shares(chunk)[self._shared.rank]
        if share.start < share.stop:
            add_in_order(self._read(views, share, beside), total[share])
            views[self._shared.rank][share].copy_(total[share])

    def _bring(self, views: list[torch.Tensor], chunk: slice, total: torch.Tensor) -> None:
        """The peers' sums of their shares."""
        for rank, share in enumerate(self._shares(chunk)):
            if rank != self._shared.rank and share.start < share.stop:
                total[share].copy_(views[rank][share])

    def _shares(self, chunk: slice) -> list[slice]:
        """Of its rows those that each rank adds up."""
        ranks, count = self._shared.ranks, chunk.stop - chunk.start
        bounds = [chunk.start + count * rank // ranks for rank in range(ranks + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def _split(self, rows: slice) -> list[slice]:
        """The chunks of a block, by its own rows."""
        count = rows.stop - rows.start
        step = -(-count // (self._chunks * _MULTIPLE)) * _MULTIPLE
        return [slice(first, min(first + step, count)) for first in range(0, count, step)]

    def _multiply(self, part: Part, rows: slice, chunk: slice, views: list[torch.Tensor]) -> None:
        part.make(slice(rows.start + chunk.start, rows.start + chunk.stop), views[self._shared.rank][chunk])

    def _read(self, views: list[torch.Tensor], rows: slice, beside: bool) -> list[torch.Tensor]:
        """Such rows of all ranks; of peers, ``beside`` a product, copied to this GPU."""
        own, parts = self._shared.rank, [view[rows] for view in views]
        if not beside:
            return parts
        return [part if rank == own else torch.empty_like(part).copy_(part) for rank, part in enumerate(parts)]

    def _leave(self) -> None:
        """All ranks have read what they need of this one."""
        with stage("reduce"):
            with self._shared.beside():
                self._shared.barrier()
            self._shared.wait()
