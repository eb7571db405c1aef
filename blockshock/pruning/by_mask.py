"""Pruners that keep what a named mask keeps: the masks of Block-Shock's halves, of which the other half is dropped."""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.matrices import Mask, Piece, WeightSource, build_mask, two_largest
from blockshock.pruning.base import PRUNERS, Pruner


class ByMask(Pruner):
    """W where a mask of MASKS keeps it."""

    named: ClassVar[str]

    def __init__(self, piece: Piece, x_TK: torch.Tensor | None) -> None:
        super().__init__(piece, x_TK)
        self._mask = build_mask(self.named, piece.source).part(piece.rows, piece.columns)

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return w_RK, self._mask.rows(start, start + len(w_RK))


@PRUNERS.register("random")
class Random(ByMask):
    """Two of each four drawn from the seed: what any method should beat."""

    named, permutes = "random", False


@PRUNERS.register("magnitude")
class Magnitude(Pruner):
    """The two largest |w| of each four stay (Mishra et al., arXiv 2104.08378, 2021)."""

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return w_RK, two_largest(w_RK.abs())  # as the mask of that name has it, which would make these rows anew


@PRUNERS.register("tile_magnitude")
class TileMagnitude(ByMask):
    """Of the 90 transposable 4 × 4 tiles the one that keeps the largest sum of |w| (Hubara et al., NeurIPS 2021)."""

    named, transposable = "tile_magnitude", True


@PRUNERS.register("1100")
class FirstTwo(ByMask):
    """The first two of each four stay, whatever they are: half of the columns of W, which needs no sparse hardware."""

    named, permutes = "1100", False

    @classmethod
    def like(cls, source: WeightSource) -> Mask:
        return build_mask(cls.named, source)
