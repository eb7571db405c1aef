"""Pruning as an optimisation: weights and mask are sought together for the least error of the outputs."""

from __future__ import annotations

import torch

from blockshock.matrices import Piece, two_largest
from blockshock.pruning.base import PRUNERS
from blockshock.pruning.hessian import Damped, hessian

FIRST_RHO, MOST_RHO = 0.1, 1e6
EVERY, ENOUGH, MOST_STEPS = 3, 30, 300
"""Steps from one change of rho to the next; after which no change of the mask ends it, even if there never was one."""
CONJUGATE_STEPS = 10


@PRUNERS.register("alps")
class Alps(Damped):
    """The 2:4 form of ALPS (Meng et al., arXiv 2406.07831, 2024): ‖X(W − D)ᵀ‖² is made small over all 2:4 D.

    With H as of SparseGPT, scaled to a diagonal of ones (and W with it), ADMM goes, from D the two largest of each four
    of W and V = 0: B = (D·ρ − V + W·H)(H + ρI)⁻¹, D = the two largest of each four of B + V/ρ, V = V + ρ(B − D). Every
    3 steps ρ, at first 0.1, grows: 1.3-fold where over 10 % of the mask changed, 1.2-fold over 0.5 %, 1.1-fold below.
    Where it never changed by 0.5 %, ρ was too large to begin with, and a fifth of it is tried, from the start. A mask
    that no longer changes is taken, and 10 steps of conjugate gradients make the best of what it keeps of B.

    Ours, not the paper's: so do 10 such steps for the mask that ADMM began with, from W on, and each row takes the
    better of the two, by the error that H gives it. Where one change is much of a row, or H is hardly more than its
    diagonal, ADMM can end with a worse mask than it had: rho grows while masks still go to and fro.

    A row's error is its own, so each row has its ρ, where the authors' code has one for all: what comes out depends on
    neither blocks nor shards of rows. A channel that is zero in all inputs loses its weights. All of it is computed in
    float64.

    Args:
        damping, shrink: as of ``sparsegpt``; ``no`` is the paper's.
    """

    slow = True

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None, damping: float = 0.01, shrink: bool = True) -> None:
        super().__init__(piece, x_TK)
        self._hessian_KK, self._dead_K = hessian(self.x_TK, damping, shrink)
        self._scale_K = self._hessian_KK.diagonal().sqrt()
        self._hessian_KK /= self._scale_K
        self._hessian_KK /= self._scale_K[:, None]
        self._values_K, self._vectors_KK = torch.linalg.eigh(self._hessian_KK)

    @classmethod
    def working_bytes(cls, R: int, K: int, T: int) -> int:
        """Five float64 (K, K) while H is taken apart; then H and its vectors, and of each block 13 float64 (R, K)."""
        return max(8 * K * K + 24 * T * K, 40 * K * K, 16 * K * K + 104 * R * K)

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        scaled_RK = w_RK.double().masked_fill(self._dead_K, 0) * self._scale_K
        d_RK, kept_RK, lost_R1 = self._refined(self._alternated(scaled_RK), scaled_RK)
        first_RK, first_kept_RK, first_lost_R1 = self._refined(scaled_RK, scaled_RK)  # the mask that ADMM began with
        first_R1 = first_lost_R1 < lost_R1
        return first_RK.where(first_R1, d_RK) / self._scale_K, first_kept_RK.where(first_R1, kept_RK)

    def _alternated(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        """B (R, K) at the end of ADMM."""
        found_RK = scaled_RK.clone()
        rows = _Rows(scaled_RK, scaled_RK @ self._hessian_KK)
        for step in range(1, MOST_STEPS + 1):
            rows.step(self._values_K, self._vectors_KK)
            if step % EVERY == 0:
                found_RK[rows.which_R] = rows.b_RK
                if not rows.go_on(step):
                    break
        return found_RK

    def _refined(self, b_RK: torch.Tensor, scaled_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The two largest of each four of B after conjugate gradients, each row by itself (Hestenes and Stiefel, 1952);
        where they are (R, K); and the squared error of each row (R, 1), as each step says how much it takes of it."""
        kept_RK = two_largest(b_RK.abs())
        d_RK = b_RK * kept_RK
        missing_RK = scaled_RK - d_RK
        left_RK = missing_RK @ self._hessian_KK
        lost_R1 = missing_RK.mul_(left_RK).sum(1, keepdim=True)
        towards_RK = left_RK.masked_fill_(~kept_RK, 0).clone()
        square_R1 = left_RK.square().sum(1, keepdim=True)
        for _ in range(CONJUGATE_STEPS):
            moved_RK = (towards_RK @ self._hessian_KK).masked_fill_(~kept_RK, 0)
            length_R1 = _ratio(square_R1, (towards_RK * moved_RK).sum(1, keepdim=True))
            d_RK.addcmul_(length_R1, towards_RK)
            left_RK.addcmul_(length_R1, moved_RK, value=-1)
            lost_R1 -= length_R1 * square_R1
            before_R1, square_R1 = square_R1, left_RK.square().sum(1, keepdim=True)
            towards_RK.mul_(_ratio(square_R1, before_R1)).add_(left_RK)
        return d_RK, kept_RK, lost_R1


class _Rows:
    """The rows that ADMM still changes, each with its own rho."""

    def __init__(self, w_RK: torch.Tensor, target_RK: torch.Tensor) -> None:
        self.which_R = torch.arange(len(w_RK), device=w_RK.device)
        self.target_RK, self.before_RK = target_RK, two_largest(w_RK.abs())
        self.b_RK, self.kept_RK, self.first_RK = w_RK, self.before_RK, w_RK * self.before_RK
        self.d_RK, self.v_RK = self.first_RK, torch.zeros_like(w_RK)
        self.rho_R1 = torch.full_like(w_RK[:, :1], FIRST_RHO)
        self.moved_R1 = torch.zeros_like(self.rho_R1, dtype=torch.bool)

    def step(self, values_K: torch.Tensor, vectors_KK: torch.Tensor) -> None:
        along_RK = (self.d_RK * self.rho_R1 - self.v_RK + self.target_RK) @ vectors_KK
        self.b_RK = (along_RK / (values_K + self.rho_R1)) @ vectors_KK.T
        sum_RK = self.b_RK + self.v_RK / self.rho_R1
        self.kept_RK = two_largest(sum_RK.abs())
        self.d_RK = sum_RK * self.kept_RK
        self.v_RK = (sum_RK - self.d_RK) * self.rho_R1

    def go_on(self, step: int) -> bool:
        """Give each row its next rho, and let go of those that are done. Returns whether any is left."""
        changed_R1 = (self.kept_RK != self.before_RK).sum(1, keepdim=True).double() / (self.kept_RK.shape[1] // 2)
        self.before_RK = self.kept_RK
        still_R1, some_R1 = changed_R1 == 0, changed_R1 > 0.005
        self.moved_R1 = self.moved_R1 | some_R1
        rho_R1 = self.rho_R1
        grown_R1 = (rho_R1 * 1.3).where(changed_R1 > 0.1, (rho_R1 * 1.2).where(some_R1, rho_R1 * 1.1))
        self.rho_R1 = grown_R1.where(self.moved_R1, rho_R1 / 5).clamp(max=MOST_RHO)
        again_R1 = ~(self.moved_R1 | still_R1)
        self.d_RK = self.first_RK.where(again_R1, self.d_RK)
        self.v_RK = self.v_RK.masked_fill(again_R1, 0)
        left_R = ~(still_R1 & (self.moved_R1 | torch.full_like(still_R1, step > ENOUGH)))[:, 0]
        if not left_R.all():
            for name, value in vars(self).items():
                setattr(self, name, value[left_R])
        return bool(left_R.any())


def _ratio(part_R1: torch.Tensor, whole_R1: torch.Tensor) -> torch.Tensor:
    """Zero where the whole is."""
    return torch.where(whole_R1 == 0, 0, part_R1 / whole_R1)
