"""Positions of kept values as the tensor cores read them, by lanes (PTX ISA, mma.sp m16n8k32 and m16n8k64)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.streamed_plan import STEP
from blockshock.matrices import Mask, TiledMask, mask_positions

TILE_ROWS = 16
"""Of a fragment."""

_BEYOND = 0x44
"""Positions of two groups beyond K: the first two of four. Their values are zeros."""


def fragments(mask: Mask, device: torch.device) -> torch.Tensor:
    """The positions that a mask keeps by fragments, as ``in_fragments`` has them; of one tile if that repeats."""
    return in_fragments(mask_positions(_repeated(mask, STEP)).to(device))


def fragments_of_bytes(mask: Mask, fp8: bool, positions_NP: torch.Tensor) -> torch.Tensor:
    """The same as ``in_fragments_of_bytes`` has them, of all positions of a mask, which are made already."""
    tile = _repeated(mask, 2 * STEP)
    found = positions_NP if tile is mask else mask_positions(tile).to(positions_NP.device)
    return in_fragments_of_bytes(found, fp8)


def _repeated(mask: Mask, columns: int) -> Mask:
    """What of a mask stands for all of it: 16 rows and so many columns, where they repeat."""
    return TiledMask(mask.tile, TILE_ROWS, columns) if mask.tile is not None and repeats(mask, columns) else mask


def repeats(mask: Mask, columns: int = STEP) -> bool:
    """Whether 16 rows and so many columns of a mask, which are those of a step, are like all others."""
    return mask.tile is not None and not (TILE_ROWS % mask.tile.shape[0] or columns % mask.tile.shape[1])


def in_fragments(positions_NP: torch.Tensor) -> torch.Tensor:
    """Packed positions (N, K/8) in the order in which lanes read them: (N/16, ⌈K/128⌉, 32 lanes, 8 bytes).

    Lane 4g + 2p + h has the 16 columns h of the products p and 2 + p of a step's four, of rows g and g + 8.
    """
    split = _split(positions_NP, STEP)
    return split.permute(0, 3, 2, 5, 6, 4, 1, 7).reshape(len(split), split.shape[3], 32, 8)


def in_rows(metadata: torch.Tensor, N: int, K: int) -> torch.Tensor:
    """Packed positions (N, K/8): the inverse of ``fragments``."""
    tiles, steps = metadata.shape[:2]
    split = metadata.reshape(tiles, steps, 8, 2, 2, 2, 2, 2)
    rows = split.permute(0, 6, 2, 1, 5, 3, 4, 7).reshape(TILE_ROWS * tiles, steps * STEP // 8)
    if len(rows) < N or 8 * rows.shape[1] < K:
        rows = rows.repeat(N // len(rows), -(-K // STEP))
    return rows[:, : K // 8].contiguous()


def in_fragments_of_bytes(positions_NP: torch.Tensor, fp8: bool) -> torch.Tensor:
    """The same of numbers of eight bits: (N/16, ⌈K/256⌉, 32 lanes, 16 bytes), four for each 64 columns of a step.

    In int8 lane 4g + 2c + r has the 32 columns c of row g + 8r. In fp8 lane 4g + 2p + h has of the 32 columns p, which
    are a product, the even groups (h = 0) or the odd ones, of rows g and g + 8.
    """
    if fp8:
        positions_NP = _even_before_odd(positions_NP)
    split = _split(positions_NP, 2 * STEP)
    tiles, _, _, halves = split.shape[:4]
    ordered = split.permute(0, 3, 2, 5, 6, 4, 1, 7) if fp8 else split.permute(0, 3, 2, 5, 1, 4, 6, 7)
    lanes = ordered.reshape(tiles, halves // 2, 2, 32, 8).transpose(2, 3)
    return lanes.reshape(tiles, halves // 2, 32, 16)


def _split(positions_NP: torch.Tensor, columns: int) -> torch.Tensor:
    """Positions, filled up to so many columns: tiles, row r and g, and of a row: 128 columns, w, p, h, two bytes.

    Of 128 columns w is which 64, p which 32 of these, h which 16 of those.
    """
    positions_NP = F.pad(positions_NP, (0, -positions_NP.shape[1] % (columns // 8)), value=_BEYOND)
    return positions_NP.unflatten(0, (-1, 2, TILE_ROWS // 2)).unflatten(3, (-1, 2, 2, 2, 2))


def _even_before_odd(positions_NP: torch.Tensor) -> torch.Tensor:
    """Of each eight groups the even ones first, and then the odd ones."""
    even, odd = ((positions_NP >> shift & 15).unflatten(1, (-1, 2, 2)) for shift in (0, 4))
    return torch.stack([nibbles[..., 0] | nibbles[..., 1] << 4 for nibbles in (even, odd)], dim=2).flatten(1)


def metadata_bytes(N: int, K: int, step: int = STEP, mask: Mask | None = None) -> int:
    """Of a (N, K) piece, whose steps have so many columns; the most, if its mask is not known."""
    one_tile = mask is not None and repeats(mask, step)
    return (TILE_ROWS if one_tile else N * -(-K // step)) * (step // 8)
