"""Pruning by what a weight is to its row and its column, and by activations."""

from __future__ import annotations

import torch

from blockshock.matrices import Piece, row_blocks
from blockshock.pruning.base import BLOCK_BYTES, PRUNERS
from blockshock.pruning.by_score import ByScore
from blockshock.registry import check_range


@PRUNERS.register("ria")
class Ria(ByScore):
    """Relative importance and activations: of each four the two largest (|w_nk| / Σ_n |w_nk| + |w_nk| / Σ_k |w_nk|) ·
    ‖x_k‖₂^a stay (Zhang et al., Plug-and-Play, ICLR 2024, §3). What stays is not changed.

    The sums go over all rows and columns of the piece that is pruned, so that a shard is pruned by its own. All of it
    is computed in float64.

    Args:
        a: 0 … 10; 0 leaves the activations out.
    """

    needs_inputs = True

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None, a: float = 0.5) -> None:
        super().__init__(piece, x_TK)
        check_range(0, 10, a=a)
        self._power_K = self.x_TK.double().norm(dim=0) ** a
        self._column_K = torch.zeros_like(self._power_K)
        for start, stop in row_blocks(piece.N, piece.source.K * piece.dtype.itemsize, block_bytes=BLOCK_BYTES):
            self._column_K += piece.block(start, stop).double().abs().sum(0)

    def scores(self, w_RK: torch.Tensor) -> torch.Tensor:
        size_RK = w_RK.double().abs()
        sums = self._column_K, size_RK.sum(1, keepdim=True)
        # Of a row or column of zeros each has no part of nothing.
        return sum(size_RK / of.where(of > 0, 1) for of in sums) * self._power_K


@PRUNERS.register("tile_ria")
class TileRia(Ria):
    """Of the 90 transposable 4 × 4 tiles the one that keeps the largest sum of RIA's squared scores."""

    transposable = True
