"""In row chunks: a chunk is under way to the peers while the next one is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import COMBINES, Part, Place
from blockshock.machine.combines.symmetric import PeerAdd, add_in_order
from blockshock.stages import stage

LEAST_ROWS = 64
"""Of a chunk: a product of fewer takes as long."""
_MULTIPLE = 16
"""The rows of each chunk but the last are a multiple of it: others some kernels copy, to fill them up."""


@COMBINES.register("overlap")
class Overlap(PeerAdd):
    """Peers' chunks are copied by a second stream, beside the product of the next, and added up in rank order.

    Args:
        chunks: of the rows of a part.
    """

    is_hidden = True
    variants = ("overlap:chunks=4",)

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device, chunks: int = 2) -> None:
        if not 2 <= chunks <= 64:
            raise InputError(f"combine overlap takes 2 to 64 chunks, got chunks={chunks}")
        super().__init__(group, elements, dtype, device)
        self._chunks = chunks

    @classmethod
    def unsuitable(cls, ranks: int | None, tokens: int, chunks: int = 2, **parameters: Any) -> str | None:
        if tokens >= LEAST_ROWS * chunks:
            return None
        return f"overlaps {chunks} chunks of at least {LEAST_ROWS} tokens, there are {tokens}: pick another combine"

    def _sum(self, part: Part) -> torch.Tensor:
        total = part.empty(part.features)
        for rows in self._blocks(part):
            views = self._views(part, rows)
            for chunk, is_last in self._computed(part, rows, views):
                # Peers' rows of the last are read where they lie: nothing is left to be copied beside.
                parts = [view[chunk] for view in views]
                add_in_order(parts if is_last else self._brought(parts), total[rows][chunk])
            self._leave()
        return total

    def _gather(self, part: Part, place: Place) -> torch.Tensor:
        whole = part.empty(self._shared.ranks * part.features)
        for rows in self._blocks(part):
            views = self._views(part, rows)
            for chunk, _ in self._computed(part, rows, views):
                place.put([view[chunk] for view in views], whole[rows][chunk])
            self._leave()
        return whole

    def _brought(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Peers' parts copied to this GPU, by its copy engine; this rank's own is here."""
        own = self._shared.rank
        return [part if rank == own else torch.empty_like(part).copy_(part) for rank, part in enumerate(parts)]

    def _computed(self, part: Part, rows: slice, views: list[torch.Tensor]) -> Iterator[tuple[slice, bool]]:
        """Compute these rows chunk by chunk, and whether it is the last; what is done with a chunk of all ranks runs
        beside the next.

        The ranks meet before the next is begun: its product takes all multiprocessors for itself, and a barrier that
        is not through by then, with all that waits for it, would come behind it.
        """
        self._shared.enter()
        count = rows.stop - rows.start
        step = -(-count // (self._chunks * _MULTIPLE)) * _MULTIPLE
        for first in range(0, count, step):
            chunk = slice(first, min(first + step, count))
            part.make(slice(rows.start + chunk.start, rows.start + chunk.stop), views[self._shared.rank][chunk])
            with stage("reduce"):
                self._shared.barrier()
                is_last = chunk.stop == count
                with nullcontext() if is_last else self._shared.beside():
                    yield chunk, is_last

    def _leave(self) -> None:
        """All ranks have read what they need of this one."""
        with stage("reduce"):
            with self._shared.beside():
                self._shared.barrier()
            self._shared.wait()
