"""Layers and inputs for pruners that look at inputs, and what those lose."""

from __future__ import annotations

import torch

from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import PRUNERS, PrunedWeights

CALIBRATED = [name for name in PRUNERS.names() if PRUNERS.get(name).needs_inputs]


def some_weights(N: int = 24, K: int = 36, dtype: torch.dtype = torch.float64, seed: int = 0) -> Piece:
    w_NK = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Piece(TensorWeights(w_NK))


def some_inputs(T: int, K: int = 36, correlated: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Of channels of very different size; correlated, so that what one loses another can make up for."""
    stream = torch.Generator().manual_seed(T)
    x_TK = torch.randn(T, K, dtype=torch.float64, generator=stream) * torch.linspace(0.1, 3, K, dtype=torch.float64)
    if correlated:
        mixing_KK = 0.7 * torch.randn(K, K, dtype=torch.float64, generator=stream)
        x_TK = x_TK + x_TK @ mixing_KK
    return x_TK.to(dtype)


def output_lost(found: PrunedWeights, piece: Piece, x_TK: torch.Tensor) -> float:
    """Relative error of the output."""
    right_TN = x_TK @ piece.block(0, piece.N).double().T
    return ((x_TK @ found.rows(0, piece.N).double().T - right_TN).norm() / right_TN.norm()).item()


def slow_hessian(x_TK: torch.Tensor, damping: float = 0.01, shrink: bool = True) -> torch.Tensor:
    """H, pair by pair of channels; of channels that are zero in all inputs, nothing but a diagonal."""
    T, K = x_TK.shape
    columns = [x_TK[:, k].double() for k in range(K)]
    sizes = [column.norm() for column in columns]
    alive = [k for k in range(K) if sizes[k] > 0]
    kept = 1.0
    if shrink:
        variance, squares = 0.0, 0.0
        for i in alive:
            for j in alive:
                if i != j:
                    products = T * (columns[i] / sizes[i]) * (columns[j] / sizes[j])
                    squares += products.mean().item() ** 2
                    variance += products.var().item() / T if T > 1 else float("inf")
        kept = 1 - min(variance / squares, 1.0) if squares > 1e-20 else 0.0
    found = torch.zeros(K, K, dtype=torch.float64)
    mean = sum(2 / T * sizes[k] ** 2 for k in alive) / len(alive) if alive else torch.ones(())
    for i in range(K):
        for j in range(K):
            found[i, j] = 2 / T * (columns[i] @ columns[j]) * (1 if i == j else kept)
        found[i, i] += damping * mean
    return found
