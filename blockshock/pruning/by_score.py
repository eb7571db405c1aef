"""Pruners that keep what scores most, and change nothing of it: two of each four, or tiles that are transposable."""

from __future__ import annotations

import torch

from blockshock.matrices import best_tiles, two_largest
from blockshock.pruning.base import Pruner


class ByScore(Pruner):
    """W where a score is large; the score is float64, for squares of fp16 are no numbers of fp16."""

    def scores(self, w_RK: torch.Tensor) -> torch.Tensor:
        """Of each weight how much it matters (R, K), at least 0, in float64."""
        raise NotImplementedError(f"{type(self).__name__} has no scores(w_RK)")

    @classmethod
    def working_bytes(cls, R: int, K: int, T: int) -> int:
        return super().working_bytes(R, K, T) + 8 * T * K

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return w_RK, largest(self.scores(w_RK), self.transposable)


def largest(scores_RK: torch.Tensor, transposable: bool) -> torch.Tensor:
    """The mask (R, K) of the two largest scores of each four, or of the tiles with the largest sum of their squares."""
    return best_tiles(scores_RK.square()) if transposable else two_largest(scores_RK)
