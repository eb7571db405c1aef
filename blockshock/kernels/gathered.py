"""Row-periodic masks need no sparse hardware: the product is dense over the kept columns.

If every row keeps the same columns c, then x @ W24ᵀ = x[:, c] @ W24[:, c]ᵀ, a dense product over K/2. A tile with a
few distinct rows is that many such products, each for its own output features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from blockshock.blocks import row_blocks
from blockshock.kernels.base import KERNELS, Half, Kernel, Packed
from blockshock.masks import Mask
from blockshock.stages import copied, stage

MOST_PATTERNS = 4
"""Distinct rows of a tile up to which splitting the product still leaves matrix-sized pieces."""


@dataclass(frozen=True)
class RowPattern:
    """The rows of a tile that keep the same columns.

    Attributes:
        rows: their indices within the tile.
        kept: the kept columns within the tile's width, in order.
        width: the tile's width, a multiple of four.
    """

    rows: tuple[int, ...]
    kept: tuple[int, ...]
    width: int

    def gather(self, x_BK: torch.Tensor) -> torch.Tensor:
        """The kept columns of x, contiguous (B, K/2)."""
        low, high = self.kept[:2]
        if self.width == 4 and low % 2 == 0 and high == low + 1 and x_BK.itemsize == 2 and _aligned_pairs(x_BK):
            # Adjacent pairs move as one 32-bit word: half the elements, and a quarter less time at small sizes.
            return x_BK.view(torch.int32)[:, low // 2 :: 2].contiguous().view(x_BK.dtype)
        x_BGQ = x_BK.unflatten(1, (-1, self.width))
        if self.width == 4:
            return x_BGQ[..., low : high + 1 : high - low].flatten(1)
        # Slices, not an index tensor: nothing is copied from the host, so that a CUDA graph can capture it.
        return torch.stack([x_BGQ[..., column] for column in self.kept], dim=-1).flatten(1)

    def scatter_add(self, part_BJ: torch.Tensor, x_BK: torch.Tensor) -> None:
        """Add a product over the kept columns to those columns of x: the transpose of ``gather``."""
        x_BGQ = x_BK.unflatten(1, (-1, self.width))
        for position, column in enumerate(self.kept):
            x_BGQ[..., column] += part_BJ[:, position :: len(self.kept)]


def _aligned_pairs(x_BK: torch.Tensor) -> bool:
    return x_BK.stride(1) == 1 and x_BK.stride(0) % 2 == 0 and x_BK.storage_offset() % 2 == 0


def row_patterns(tile: torch.Tensor) -> list[RowPattern]:
    """The distinct rows of a boolean tile (P, Q), in order of first appearance."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(tile.cpu()):
        rows.setdefault(tuple(row.nonzero().flatten().tolist()), []).append(index)
    return [RowPattern(tuple(where), kept, tile.shape[1]) for kept, where in rows.items()]


class PackedGathered(Packed):
    """``values``: per row pattern, the kept values of its rows, (rows with that pattern, K/2)."""

    values_0: torch.Tensor

    def __init__(self, half: Half, bias: torch.Tensor | None) -> None:
        super().__init__()
        assert half.mask.tile is not None
        self.patterns, self.period = row_patterns(half.mask.tile), half.mask.tile.shape[0]
        for index, pattern in enumerate(self.patterns):
            shape = (half.N // self.period * len(pattern.rows), half.K // 2)
            self.register_buffer(f"values_{index}", torch.empty(shape, dtype=half.dtype, device=half.device))
            self.register_buffer(f"bias_{index}", None if bias is None else self._of_pattern(bias, pattern))
        for start, stop in row_blocks(half.N, half.source.K * half.dtype.itemsize, multiple=self.period):
            self._write(half.kept_values(start, stop), start)

    def _of_pattern(self, rows: torch.Tensor, pattern: RowPattern) -> torch.Tensor:
        return rows.unflatten(0, (-1, self.period))[:, list(pattern.rows)].flatten(0, 1)

    def _write(self, values_RJ: torch.Tensor, start: int) -> None:
        for index, pattern in enumerate(self.patterns):
            rows = self._of_pattern(values_RJ, pattern)
            first = start // self.period * len(pattern.rows)
            self.get_buffer(f"values_{index}")[first : first + len(rows)] = rows

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        parts = [self._product(index, x_BK) for index in range(len(self.patterns))]
        if len(parts) == 1:
            return parts[0]
        with stage("layout"):
            y_BNP = x_BK.new_empty(len(x_BK), parts[0].shape[1] // len(self.patterns[0].rows), self.period)
            for part, pattern in zip(parts, self.patterns, strict=True):
                for position, row in enumerate(pattern.rows):
                    y_BNP[..., row] = part.unflatten(1, (-1, len(pattern.rows)))[..., position]
            return copied(y_BNP.flatten(1))

    def _product(self, index: int, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("layout"):
            x_BJ = copied(self.patterns[index].gather(x_BK))
        with stage("matmul"):
            return F.linear(x_BJ, self.get_buffer(f"values_{index}"), getattr(self, f"bias_{index}"))

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        grad_x_BK = grad_y_BN.new_zeros(len(grad_y_BN), 2 * self.values_0.shape[1])
        for index, pattern in enumerate(self.patterns):
            grad_BR = self._rows_of_pattern(grad_y_BN, pattern)
            with stage("grad_x"):
                part_BJ = grad_BR @ self.get_buffer(f"values_{index}")
            with stage("layout"):
                pattern.scatter_add(copied(part_BJ), grad_x_BK)
        return grad_x_BK

    def _rows_of_pattern(self, grad_y_BN: torch.Tensor, pattern: RowPattern) -> torch.Tensor:
        """The columns of grad_y that belong to the output features of a pattern."""
        if len(self.patterns) == 1:
            return grad_y_BN
        with stage("layout"):
            grad_BNP = grad_y_BN.unflatten(1, (-1, self.period))
            return copied(torch.stack([grad_BNP[..., row] for row in pattern.rows], dim=-1).flatten(1))

    def refresh(self, values_NJ: torch.Tensor) -> None:
        self._write(values_NJ, 0)


@KERNELS.register("gathered")
class Gathered(Kernel):
    """Any device and dtype; masks that are a tile of few distinct rows. Stores kept values alone: 1/2 of dense."""

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if mask is None:
            return None
        if mask.tile is None:
            return "needs a row-periodic mask (1100, 1010, 1001, their complements or tile); this one has no tile"
        if N % mask.tile.shape[0]:
            return f"needs N to be a multiple of the tile's {mask.tile.shape[0]} rows, got N = {N}"
        distinct = len(row_patterns(mask.tile))
        if distinct > MOST_PATTERNS:
            return f"takes tiles of at most {MOST_PATTERNS} distinct rows; this one has {distinct}"
        return None

    def pack(self, half: Half, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedGathered(half, bias)

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        return N * K // 2 * itemsize
