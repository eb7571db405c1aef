"""Pruning by weights and activations: what multiplies large inputs stays."""

from __future__ import annotations

import torch

from blockshock.matrices import Piece, two_largest
from blockshock.pruning.base import PRUNERS, Pruner


@PRUNERS.register("wanda")
class Wanda(Pruner):
    """Of each four the two largest |w_nk| · ‖x_k‖₂ stay, the norm over all calibration tokens (Sun et al., arXiv
    2306.11695, 2023). What stays is not changed.

    Norms are taken in float64: a channel of fp16 whose squares overflow or underflow counts as what it is.
    """

    needs_inputs = True

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
        super().__init__(piece, x_TK)
        self._norm_K = self.x_TK.double().norm(dim=0)

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return w_RK, two_largest(w_RK.double().abs() * self._norm_K)
