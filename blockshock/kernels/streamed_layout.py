"""Positions of kept values as the tensor cores read them, by lanes (PTX ISA, mma.sp m16n8k32 and m16n8k64)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.streamed_plan import STEP

_BEYOND = 0x44
"""Positions of two groups beyond K: the first two of four. Their values are zeros."""


def in_fragments(positions_NP: torch.Tensor) -> torch.Tensor:
    """Packed positions (N, K/8) in the order in which lanes read them: (N/16, ⌈K/128⌉, 32 lanes, 8 bytes).

    Lane 4g + 2p + h has the 16 columns h of the products p and 2 + p of a step's four, of rows g and g + 8.
    """
    split = _split(positions_NP, STEP)
    return split.permute(0, 3, 2, 5, 6, 4, 1, 7).reshape(len(split), split.shape[3], 32, 8)


def in_rows(metadata: torch.Tensor, K: int) -> torch.Tensor:
    """The inverse of ``in_fragments``."""
    tiles, steps = metadata.shape[:2]
    split = metadata.reshape(tiles, steps, 8, 2, 2, 2, 2, 2)
    return split.permute(0, 6, 2, 1, 5, 3, 4, 7).reshape(16 * tiles, steps * STEP // 8)[:, : K // 8].contiguous()


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
    return positions_NP.unflatten(0, (-1, 2, 8)).unflatten(3, (-1, 2, 2, 2, 2))


def _even_before_odd(positions_NP: torch.Tensor) -> torch.Tensor:
    """Of each eight groups the even ones first, and then the odd ones."""
    even, odd = ((positions_NP >> shift & 15).unflatten(1, (-1, 2, 2)) for shift in (0, 4))
    return torch.stack([nibbles[..., 0] | nibbles[..., 1] << 4 for nibbles in (even, odd)], dim=2).flatten(1)


def metadata_bytes(N: int, K: int, step: int = STEP) -> int:
    """Of a (N, K) piece, whose steps have so many columns."""
    return N * -(-K // step) * (step // 8)
