"""Prune once, then retrain: the mask of a dense checkpoint, for good."""

from __future__ import annotations

from dataclasses import dataclass

from blockshock.registry import check_range
from blockshock.training.recipes.base import MOST_STEPS, RECIPES
from blockshock.training.recipes.tiles import OfTiles


@RECIPES.register("pruned")
@dataclass
class Pruned(OfTiles):
    """The transposable mask of a dense W stays; what it drops is zero, and gets no gradient.

    Args:
        dense_until: steps after which it is the mask of W; until then W multiplies. 0 for the W that it begins with.
    """

    operand = "W, along rows and columns"
    source = "Mishra et al., arXiv 2104.08378; transposable: Hubara et al., arXiv 2102.08124"
    keeps_dropped = own_forward = False

    dense_until: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, MOST_STEPS, dense_until=self.dense_until)

    def is_sparse(self, steps: int, switched: bool) -> bool:
        return steps >= self.dense_until

    def first_sparse(self) -> int:
        return self.dense_until

    @classmethod
    def scaled(cls, steps: int) -> dict[str, int]:
        """Its dense checkpoint is what the first half of the steps comes to."""
        return {"dense_until": steps // 2}
