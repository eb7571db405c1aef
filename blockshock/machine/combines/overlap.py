"""In row chunks: a chunk is under way to the peers while the next one is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import COMBINES, Part, Place, side_by_side
from blockshock.machine.combines.symmetric import Symmetric
from blockshock.stages import stage

LEAST_ROWS = 64
"""Of a chunk: a product of fewer takes as long."""
_MULTIPLE = 16
"""The rows of each chunk but the last are a multiple of it: others some kernels copy, to fill them up."""


@COMBINES.register("overlap")
class Overlap(Symmetric):
    """Peers' chunks are copied by a second stream, beside the product of the next, and added up in rank order.

    Args:
        chunks: of the rows of a part.
    """

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

    def sum(self, part: Part) -> torch.Tensor:
        total = part.empty(part.features)
        for rows in self._blocks(part):
            views, there, arrived = self._views(part, rows), self._there(part, rows), []
            for chunk in self._computed(part, rows, views):
                for rank, view in enumerate(views):
                    if rank != self._shared.rank:
                        there[rank][chunk].copy_(view[chunk])
                arrived.append((chunk, self._shared.mark()))
            for chunk, mark in arrived:
                with stage("reduce"):
                    self._shared.wait(mark)
                    self._add_chunk([view[chunk] for view in there], total[rows][chunk])
            self._leave()
        return total

    def gather(self, part: Part, place: Place = side_by_side) -> torch.Tensor:
        whole = part.empty(self._shared.ranks * part.features)
        for rows in self._blocks(part):
            views = self._views(part, rows)
            for chunk in self._computed(part, rows, views):
                place.put([view[chunk] for view in views], whole[rows][chunk])
            self._leave()
        return whole

    def _there(self, part: Part, rows: slice) -> list[torch.Tensor]:
        """Where peers' rows are copied to; this rank's own are where they were written."""
        own, shape = self._shared.rank, (rows.stop - rows.start, part.features)
        return [
            self._shared.view(own, shape, part.dtype)
            if rank == own
            else torch.empty(shape, dtype=part.dtype, device=part.device)
            for rank in range(self._shared.ranks)
        ]

    def _computed(self, part: Part, rows: slice, views: list[torch.Tensor]) -> Iterator[slice]:
        """Compute these rows chunk by chunk; what is done with a chunk of all ranks runs beside the next."""
        self._shared.enter()
        count = rows.stop - rows.start
        step = -(-count // (self._chunks * _MULTIPLE)) * _MULTIPLE
        for first in range(0, count, step):
            chunk = slice(first, min(first + step, count))
            part.make(slice(rows.start + chunk.start, rows.start + chunk.stop), views[self._shared.rank][chunk])
            with stage("reduce"), self._shared.beside():
                self._shared.barrier()
                yield chunk

    def _leave(self) -> None:
        """All ranks have read what they need of this one."""
        with stage("reduce"):
            with self._shared.beside():
                self._shared.barrier()
            self._shared.wait()

    @staticmethod
    def _add_chunk(parts: list[torch.Tensor], total: torch.Tensor) -> None:
        torch.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            total += part

    def _add(self, views: list[torch.Tensor], total: torch.Tensor) -> None:
        """Of what is computed already."""
        self._shared.barrier()
        self._add_chunk(views, total)
        self._shared.barrier()
