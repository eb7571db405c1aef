"""The orders in which numbers of eight bits lie, for products that read them otherwise than in rows."""

from __future__ import annotations

from enum import Enum

import torch
from torch.nn import functional as F

TILE_ROWS, TILE_COLUMNS, TILE_STEPS = 256, 128, 2
"""Of a tile; and of how many tiles a row of them is a multiple."""
_CHUNKS = TILE_COLUMNS // 16


class Order(Enum):
    """Of a matrix (R, K).

    Attributes:
        ROWS: as rows are.
        CROSSED: of each eight numbers of a row the third and the fourth have changed places with the fifth and the
            sixth; K is a multiple of eight. The kernel streamed reads x so in fp8.
        TILES: (⌈R/256⌉, ⌈K/256⌉·2, 256, 128): of a row in a tile the chunk c, of 16 numbers, is at c ^ (row % 8).
            Columns are filled up with zeros; what rows are filled up with is anything. The kernel wgmma reads x so.
    """

    ROWS = 0
    CROSSED = 1
    TILES = 2

    def shape(self, R: int, K: int) -> tuple[int, ...]:
        """Of what holds a matrix."""
        return _shape_of_tiles(R, K) if self is Order.TILES else (R, K)

    def of(self, q_RK: torch.Tensor) -> torch.Tensor:
        """A matrix of numbers of eight bits, which lies in rows, in this order."""
        return q_RK if self is Order.ROWS else _ORDERED[self](q_RK)


def steps_of(K: int) -> int:
    """Tiles that so many columns fill."""
    return -(-K // (TILE_COLUMNS * TILE_STEPS)) * TILE_STEPS


def _shape_of_tiles(R: int, K: int) -> tuple[int, int, int, int]:
    return -(-R // TILE_ROWS), steps_of(K), TILE_ROWS, TILE_COLUMNS


def _crossed(q_RK: torch.Tensor) -> torch.Tensor:
    pairs = q_RK.contiguous().view(torch.int16).unflatten(1, (-1, 2, 2))
    return pairs.transpose(2, 3).flatten(1).view(q_RK.dtype)


def _in_tiles(q_RK: torch.Tensor) -> torch.Tensor:
    (R, K), shape = q_RK.shape, _shape_of_tiles(*q_RK.shape)
    filled = F.pad(q_RK.contiguous().view(torch.uint8), (0, shape[1] * TILE_COLUMNS - K, 0, shape[0] * TILE_ROWS - R))
    chunks = filled.view(shape[0], TILE_ROWS // 8, 8, shape[1], _CHUNKS, 16).permute(0, 3, 1, 2, 4, 5)
    row, chunk = torch.arange(8, device=q_RK.device)[:, None], torch.arange(_CHUNKS, device=q_RK.device)
    return chunks[:, :, :, row, chunk ^ row].reshape(shape).view(q_RK.dtype)


_ORDERED = {Order.CROSSED: _crossed, Order.TILES: _in_tiles}
