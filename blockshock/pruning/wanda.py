"""Pruning by weights and activations: what multiplies large inputs stays."""

from __future__ import annotations

import torch

from blockshock.matrices import Piece
from blockshock.pruning.base import PRUNERS
from blockshock.pruning.by_score import ByScore


@PRUNERS.register("wanda")
class Wanda(ByScore):
    """Of each four the two largest |w_nk| · ‖x_k‖₂ stay, the norm over all calibration tokens (Sun et al., arXiv
    2306.11695, 2023). What stays is not changed.

    Norms are taken in float64: a channel of fp16 whose squares overflow or underflow counts as what it is.
    """

    needs_inputs = True

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
        super().__init__(piece, x_TK)
        self._norm_K = self.x_TK.double().norm(dim=0)

    def scores(self, w_RK: torch.Tensor) -> torch.Tensor:
        return w_RK.double().abs() * self._norm_K


@PRUNERS.register("tile_wanda")
class TileWanda(Wanda):
    """Of the 90 transposable 4 × 4 tiles the one that keeps the largest sum of Wanda's squared scores.

    That sum is the squared error of the output that the dropped weights would make if channels were uncorrelated.
    """

    transposable = True
