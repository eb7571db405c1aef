"""Pruning column by column, where what is left takes over what each dropped weight did to the outputs."""

from __future__ import annotations

import torch

from blockshock.matrices import Piece
from blockshock.pruning.base import PRUNERS
from blockshock.pruning.by_score import largest
from blockshock.pruning.hessian import Damped, hessian

BLOCK = 128
"""Columns whose corrections reach the columns behind them together, as one product."""


@PRUNERS.register("sparsegpt")
class SparseGpt(Damped):
    """The 2:4 form of SparseGPT (Frantar and Alistarh, arXiv 2301.00774).

    With H = (2/T)·XᵀX + damping·mean(diag H)·I and H⁻¹ = UᵀU, U upper triangular: columns are gone through from the
    first to the last. At each group of four the two smallest w²/U_kk² are dropped, by weights as they are corrected so
    far; the error (w − w′)/U_kk of each column, times the rest of its row of U, is taken from the columns behind it.
    A channel that is zero in all inputs (H_kk = 0) loses its weights. All of it is computed in float64.

    Args:
        damping: share of the mean of diag H that is added to it, above 0. Where a few channels are hundreds of times as
            large as the others, it is more than these have, and what is said of them is lost: take less there.
        shrink: make what H has beside its diagonal smaller by as much of it as is chance (``hessian``), which the paper
            does not: it has 100 times as many tokens as channels. ``no`` is the paper's.
    """

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None, damping: float = 0.01, shrink: bool = True) -> None:
        super().__init__(piece, x_TK)
        hessian_KK, self._dead_K = hessian(self.x_TK, damping, shrink)
        hessian_KK = torch.linalg.cholesky(hessian_KK)
        self._upper_KK = torch.linalg.cholesky(torch.cholesky_inverse(hessian_KK), upper=True)

    @classmethod
    def working_bytes(cls, R: int, K: int, T: int) -> int:
        """Four float64 (K, K) while U is made of H; then U, and of each block of rows its W′."""
        return max(8 * K * K + 24 * T * K, 32 * K * K, 8 * K * K + super().working_bytes(R, K, T))

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        left_RK = w_RK.double().masked_fill(self._dead_K, 0)
        kept_RK = torch.empty_like(w_RK, dtype=torch.bool)
        for first in range(0, left_RK.shape[1], BLOCK):
            last = min(first + BLOCK, left_RK.shape[1])
            errors_RB = self._prune_columns(left_RK, kept_RK, first, last)
            left_RK[:, last:] -= errors_RB @ self._upper_KK[first:last, last:]
        return left_RK, kept_RK

    def _prune_columns(self, left_RK: torch.Tensor, kept_RK: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Go through the columns of a block, in place. Returns their errors (R, last - first)."""
        errors = []
        for k in range(first, last):
            if k % 4 == 0:
                group = slice(k, k + 4)
                kept_RK[:, group] = largest(
                    left_RK[:, group].abs() / self._upper_KK.diagonal()[group], self.transposable
                )
            error_R = left_RK[:, k].masked_fill(kept_RK[:, k], 0) / self._upper_KK[k, k]
            left_RK[:, k].masked_fill_(~kept_RK[:, k], 0)
            left_RK[:, k + 1 : last] -= error_R.outer(self._upper_KK[k, k + 1 : last])
            errors.append(error_R)
        return torch.stack(errors, dim=1)


@PRUNERS.register("tile_sparsegpt")
class TileSparseGpt(SparseGpt):
    """SparseGPT that keeps of each four rows and columns the transposable tile with the largest sum of w²/U_kk²."""

    transposable = True
