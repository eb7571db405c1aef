"""x Wᵀ in float64, some rows of W at once: what errors and losses are both told from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from blockshock.matrices import WeightSource


class Exact(NamedTuple):
    """Rows (R, K) of weights in float64, and x times them (B, R), without a bias."""

    weights: WeightSource
    x_BK: torch.Tensor
    w_RK: torch.Tensor
    y_BR: torch.Tensor

    def is_of(self, weights: WeightSource, x_BK: torch.Tensor) -> bool:
        """Whether it is of these very objects."""
        return self.weights is weights and self.x_BK is x_BK


class Beside(Protocol):
    """What else is told from the same product."""

    def add(self, start: int, stop: int, known: Exact) -> None:
        """Of rows [start, stop)."""
