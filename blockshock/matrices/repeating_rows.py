"""Masks whose rows repeat: which rows of a tile keep the same columns, and how to reach those rows and columns.

Everything here is slices, never an index tensor: nothing is copied from the host, so that a CUDA graph can capture it.
What a GPU can move in one launch at the rate of its memory is left to ``columns_on_gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from blockshock.matrices import columns_on_gpu

MOST_PATTERNS = 4
"""Distinct rows of a tile up to which splitting a product by them still leaves matrix-sized pieces."""


@dataclass(frozen=True)
class Every:
    """The same few positions of each ``width`` consecutive columns, in order."""

    positions: tuple[int, ...]
    width: int

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        """Those columns of x, contiguous (B, K/width·positions)."""
        if columns_on_gpu.takes(self.positions, self.width, x_BK):
            return columns_on_gpu.taken(self.positions, x_BK)
        if len(self.positions) == 2 and not torch.compiler.is_compiling():  # which fuses copies in its own way
            if x_BK.numel() > FEW and (words := self._words(x_BK)) is not None:
                return words.contiguous().view(x_BK.dtype)
            x_BGP = self._pairs(x_BK)
            return x_BGP.reshape(x_BGP.shape[0], 2 * x_BGP.shape[1]).contiguous()
        x_BGQ = x_BK.unflatten(1, (-1, self.width))
        if len(self.positions) == 2:
            low, high = self.positions
            return x_BGQ[..., low : high + 1 : high - low].flatten(1).contiguous()
        return torch.stack([x_BGQ[..., position] for position in self.positions], dim=-1).flatten(1)

    def put(self, part_BJ: torch.Tensor, x_BK: torch.Tensor) -> None:
        """Write those columns of x: the inverse of ``take``."""
        if len(self.positions) == 2 and not torch.compiler.is_compiling():
            if x_BK.numel() > FEW and (words := self.words(part_BJ, x_BK)) is not None:
                words[1].copy_(words[0])
            else:
                x_BGP = self._pairs(x_BK)
                x_BGP.copy_(part_BJ.view(x_BGP.shape))
            return
        for x_BG, part_BG in self._columns(x_BK, part_BJ):
            x_BG.copy_(part_BG)

    def columns(self, K: int) -> list[int]:
        """Which of K columns these are."""
        return [start + position for start in range(0, K, self.width) for position in self.positions]

    def words(self, part_BJ: torch.Tensor, x_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Views of both, between which a copy is ``put``, in fewer and larger words; None where there are none."""
        if len(self.positions) != 2 or not part_BJ.is_contiguous() or not fits_words(part_BJ):
            return None
        words = self._words(x_BK)
        return None if words is None else (part_BJ.view(WORDS[part_BJ.itemsize]), words)

    def add(self, part_BJ: torch.Tensor, x_BK: torch.Tensor) -> None:
        """Add to those columns of x: the transpose of ``take``."""
        for x_BG, part_BG in self._columns(x_BK, part_BJ):
            x_BG.add_(part_BG)

    def _columns(self, x_BK: torch.Tensor, part_BJ: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, position in enumerate(self.positions):
            yield x_BK[:, position :: self.width], part_BJ[:, index :: len(self.positions)]

    def _pairs(self, x_BK: torch.Tensor) -> torch.Tensor:
        """Those columns, pair by pair, (B, K/width, 2): a view that takes one step to make."""
        (low, high), (B, K), (row, column) = self.positions, x_BK.shape, x_BK.stride()
        strides = (row, self.width * column, (high - low) * column)
        return x_BK.as_strided((B, K // self.width, 2), strides, x_BK.storage_offset() + low * column)

    def _words(self, x_BK: torch.Tensor) -> torch.Tensor | None:
        """The same, a word of twice the size a pair: half as many to move, and less time. None where that cannot be."""
        (low, high), width, K, (row, column) = self.positions, self.width, x_BK.shape[1], x_BK.stride()
        if high != low + 1 or low % 2 or width % 2 or column != 1 or row % 2 or not fits_words(x_BK):
            return None
        if width == K:
            return None  # at most one word a row: the strided view counts as contiguous, and is not viewed back
        words = x_BK.view(WORDS[x_BK.itemsize])
        return words.as_strided((x_BK.shape[0], K // width), (row // 2, width // 2), words.storage_offset() + low // 2)


FEW = 1 << 12
"""Elements up to which the fewest steps take the least time."""
WORDS = {2: torch.int32, 4: torch.int64}
"""Of twice the bytes."""


def fits_words(tensor: torch.Tensor) -> bool:
    """Whether elements can be viewed as words of two: by torch's count, and in memory, where GPUs load them."""
    size = tensor.itemsize
    return size in WORDS and tensor.storage_offset() % 2 == 0 and tensor.data_ptr() % (2 * size) == 0


@dataclass(frozen=True)
class RowPattern:
    """The rows of a tile that keep the same columns.

    Attributes:
        rows: those rows, of every tile.
        kept: the columns that they keep, of every tile.
        start, stop: where they lie when the rows of the matrix are sorted by pattern.
    """

    rows: Every
    kept: Every
    start: int
    stop: int


class RowPatterns:
    """The distinct rows of a boolean tile (P, Q) over a matrix of N rows, in order of first appearance."""

    def __init__(self, tile: torch.Tensor, N: int) -> None:
        self.period, width = tile.shape
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(tile.cpu()):
            rows.setdefault(tuple(row.nonzero().flatten().tolist()), []).append(index)
        self.patterns, start = [], 0
        for kept, where in rows.items():
            stop = start + N // self.period * len(where)
            self.patterns.append(RowPattern(Every(tuple(where), self.period), Every(kept, width), start, stop))
            start = stop
        self._look_at_columns()

    def _look_at_columns(self) -> None:
        columns = [position for pattern in self.patterns for position in pattern.kept.positions]
        self._disjoint = len(set(columns)) == len(columns)
        """Whether no column is kept by the rows of two patterns."""
        self._full = self._disjoint and len(columns) == self.patterns[0].kept.width
        """Whether, beside that, each is kept by those of one."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._look_at_columns()  # older files do not say

    def __iter__(self) -> Iterator[RowPattern]:
        return iter(self.patterns)

    def __len__(self) -> int:
        return len(self.patterns)

    def sort(self, matrix_NJ: torch.Tensor) -> torch.Tensor:
        """The rows (the elements, of a vector) sorted by pattern."""
        if len(self) == 1:
            return matrix_NJ
        out_NJ = torch.empty_like(matrix_NJ)
        self.sort_into(out_NJ, matrix_NJ)
        return out_NJ

    def sort_into(self, out_NJ: torch.Tensor, rows_RJ: torch.Tensor, start: int = 0) -> None:
        """Write rows [start, start + R), whole tiles of them, to where they lie sorted by pattern."""
        tiles, first_tile = len(rows_RJ) // self.period, start // self.period
        for pattern in self:
            height = len(pattern.rows.positions)
            first = pattern.start + first_tile * height
            block = out_NJ[first : first + tiles * height]
            for index, row in enumerate(pattern.rows.positions):
                block[index::height] = rows_RJ[row :: self.period]

    def unsort(self, sorted_NJ: torch.Tensor) -> torch.Tensor:
        """The inverse of ``sort``."""
        if len(self) == 1:
            return sorted_NJ
        return self.interleave(self.parts(sorted_NJ))

    def interleave(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The rows of a matrix, in order, from those of each pattern."""
        out_NJ = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
        for pattern, part in zip(self, parts, strict=True):
            for index, row in enumerate(pattern.rows.positions):
                out_NJ[row :: self.period] = part[index :: len(pattern.rows.positions)]
        return out_NJ

    def kept(self, w_NK: torch.Tensor) -> torch.Tensor:
        """The kept values of a matrix, (N, K/2), rows sorted by pattern."""
        rows_NK = self.sort(w_NK)
        return torch.cat([pattern.kept.take(rows_NK[pattern.start : pattern.stop]) for pattern in self])

    def dense(self, values_NJ: torch.Tensor) -> torch.Tensor:
        """The inverse of ``kept``: (N, K), zero where the mask drops."""
        sorted_NK = values_NJ.new_zeros(len(values_NJ), 2 * values_NJ.shape[1])
        for pattern in self:
            pattern.kept.put(values_NJ[pattern.start : pattern.stop], sorted_NK[pattern.start : pattern.stop])
        return self.unsort(sorted_NK)

    def parts(self, sorted_NJ: torch.Tensor) -> list[torch.Tensor]:
        """Of rows sorted by pattern those of each, views; of a single pattern the matrix itself."""
        if len(self.patterns) == 1:
            return [sorted_NJ]
        return [sorted_NJ[pattern.start : pattern.stop] for pattern in self.patterns]

    def split(self, grad_y_BN: torch.Tensor) -> list[torch.Tensor]:
        """Of each pattern the output features that its rows make, contiguous."""
        if len(self) == 1:
            return [grad_y_BN]
        return [pattern.rows.take(grad_y_BN) for pattern in self]

    def join(self, parts: list[torch.Tensor], out_BN: torch.Tensor | None = None) -> torch.Tensor:
        """The inverse of ``split``; of several parts in memory of its own, or where it is told to."""
        if len(parts) == 1:
            return parts[0]
        y_BN = parts[0].new_empty(len(parts[0]), sum(part.shape[1] for part in parts)) if out_BN is None else out_BN
        for pattern, part in zip(self, parts, strict=True):
            pattern.rows.put(part, y_BN)
        return y_BN

    def sum_columns(self, parts: list[torch.Tensor], K: int) -> torch.Tensor:
        """(B, K) with each pattern's part (B, K/2) added to the columns that its rows keep."""
        disjoint, full = self._disjoint, self._full
        x_BK = (torch.empty if full else torch.zeros)(len(parts[0]), K, dtype=parts[0].dtype, device=parts[0].device)
        for pattern, part in zip(self, parts, strict=True):
            (pattern.kept.put if disjoint else pattern.kept.add)(part, x_BK)
        return x_BK
