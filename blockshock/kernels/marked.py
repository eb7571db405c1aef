"""Zeros among kept values, for compressors that look at values and take a kept zero for a dropped one.

They are given a matrix in which each kept zero is the smallest normal number, so that their metadata are those of the
mask; the values are then written over by what they are.
"""

from __future__ import annotations

import torch

from blockshock.matrices import Piece, nudge_zeros, row_blocks


def marked(piece: Piece) -> tuple[torch.Tensor, bool]:
    """The piece as a dense (N, K) tensor that is nowhere zero where it is kept, and whether that took a change."""
    w_NK = piece.dense()
    if int(w_NK.count_nonzero()) == w_NK.numel() // 2:
        return w_NK, False
    for start, stop in row_blocks(piece.N, piece.K * w_NK.itemsize):
        w_NK[start:stop] = nudge_zeros(w_NK[start:stop]).where(piece.kept.rows(start, stop), 0)
    return w_NK, True


def write_kept(piece: Piece, values_NJ: torch.Tensor) -> None:
    """Write the kept values of a piece as they are, zeros and all."""
    for start, stop in row_blocks(piece.N, piece.K * piece.dtype.itemsize):
        values_NJ[start:stop] = piece.kept_values(start, stop)
