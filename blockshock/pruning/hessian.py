"""How inputs go together: the second moments that pruners weigh errors by, made sound where tokens are few."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.pruning.base import Pruner


class Damped(Pruner):
    """A pruner by H, which is damped."""

    needs_inputs = True

    @classmethod
    def check(cls, damping: float = 0.01, **others: Any) -> None:
        _check_damping(damping)


def _check_damping(damping: float) -> None:
    """Raises InputError unless it lies above 0 and below 1000."""
    if not 0 < damping < 1e3:
        raise InputError(f"a pruner takes a damping above 0 and below 1000, got damping={damping}")


def hessian(x_TK: torch.Tensor, damping: float, shrink: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """H = (2/T)·XᵀX + damping·mean(diag H)·I (K, K) in float64, and which channels are zero in all inputs (K,).

    The mean is of the other channels, so that damping has the size of what there is. With ``shrink`` what stands beside
    the diagonal is made smaller by ``noise_share``: of few tokens, most of how channels go together is chance, and what
    corrects for that makes unseen outputs worse.

    Raises:
        InputError: the damping does not lie above 0 and below 1000.
    """
    _check_damping(damping)
    scaled_TK = x_TK.double()
    size_K = scaled_TK.norm(dim=0)
    dead_K = size_K == 0
    scaled_TK = scaled_TK / size_K.masked_fill(dead_K, 1)
    hessian_KK = scaled_TK.T @ scaled_TK
    if shrink:
        hessian_KK *= 1 - noise_share(scaled_TK, hessian_KK)
    hessian_KK *= size_K
    hessian_KK *= size_K[:, None] * (2 / len(x_TK))
    square_K = size_K.square() * (2 / len(x_TK))
    mean = square_K.sum() / (~dead_K).sum() if square_K.any() else square_K.new_ones(())
    hessian_KK.diagonal().copy_(square_K + damping * mean)
    return hessian_KK, dead_K


def noise_share(scaled_TK: torch.Tensor, cosines_KK: torch.Tensor) -> float:
    """Which share of the squared cosines between channels is chance: Σ var(r_ij) / Σ r_ij² over i ≠ j, at most 1.

    The variance is that of a mean over T independent tokens (Schäfer and Strimmer, A Shrinkage Approach to Large-Scale
    Covariance Matrix Estimation, 2005, the target "diagonal, unequal variance"; here about zero, not about the mean).
    With one token, or channels that are all orthogonal, nothing is known: 1.

    Args:
        scaled_TK: inputs, each channel of norm 1 or 0.
        cosines_KK: its XᵀX.
    """
    T = len(scaled_TK)
    squares = (cosines_KK.norm().square() - cosines_KK.diagonal().square().sum()).item()
    products = (scaled_TK.norm(dim=1).pow(4).sum() - torch.linalg.vector_norm(scaled_TK, 4).pow(4)).item()
    if T < 2 or squares <= 0:
        return 1.0
    return min(max((T * products - squares) / ((T - 1) * squares), 0.0), 1.0)
