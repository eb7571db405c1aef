"""FST: transposable masks every so many steps, sampled gradients, masked decay, and dense training at the end."""

from __future__ import annotations

from dataclasses import dataclass

from blockshock.registry import check_range
from blockshock.training.recipes.base import MOST_STEPS, RECIPES
from blockshock.training.recipes.tiles import OfTiles


@RECIPES.register("fst")
@dataclass
class Fst(OfTiles):
    """All three products have a 2:4 operand: W in y and ∇x, for its mask is transposable, and ∇yᵀ in ∇W.

    Args:
        every: steps from one mask to the next; values are packed after each.
        decay: λ of what the mask drops: 6e-5 to 2e-4 in the paper, by the size of the network.
        dense_from: steps after which W multiplies; 0 for never. In the paper it is the last sixth: 250k of 300k.
        seed: of the draws.
    """

    operand = "W, along rows and columns; ∇y, along tokens"
    source = "FST, Hu et al., arXiv 2404.01847"
    samples = True
    every: int = 40
    decay: float = 6e-5
    dense_from: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, MOST_STEPS, dense_from=self.dense_from)

    def is_sparse(self, steps: int, switched: bool) -> bool:
        return not self.dense_from or steps < self.dense_from

    @classmethod
    def scaled(cls, steps: int) -> dict[str, int]:
        """Dense for the last sixth; a mask every 40 steps, and of few steps ten in all."""
        return {"every": max(1, min(40, steps // 10)), "dense_from": max(1, steps * 5 // 6)}
