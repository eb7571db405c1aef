"""Kernels and ways to combine that are chosen as pairs: some kernels sum over the ranks themselves.

The kernel whose product is fastest need not be one of these, and what such a one saves in the sum may be more than
its product takes longer.
"""

from __future__ import annotations

import math

from blockshock.kernels import Kernel, build_kernel, shape_of
from blockshock.machine import Group, combine_of
from blockshock.matrices import Piece
from blockshock.methods.combined import AUTO, USUAL, Combined
from blockshock.methods.layer import Layer
from blockshock.methods.pieces import PieceMethod


class Jointly(Combined, PieceMethod):
    """A method that picks both. Where both are auto it takes the fastest pair, if it sums and only goes forward."""

    def pieces(self, layer: Layer) -> list[Piece]:
        """What this rank multiplies by."""
        raise NotImplementedError

    def _decides(self, layer: Layer) -> str:
        return shape_of(self.pieces(layer)[0], layer.tokens)

    def build(self, layer: Layer) -> None:
        if self.ranks > 1 and layer.format is None:
            self._kernel = self._joint(layer, self.group)
        super().build(layer)

    def _joint(self, layer: Layer, group: Group) -> Kernel | None:
        """The kernel that goes with how ranks combine; None where it is chosen by itself."""
        rivals, what = self._rivals(layer, group)
        if len(rivals) < 2:
            return rivals[0] if rivals else None
        seconds = self._agreed(what, len(rivals), lambda: self._of_each(rivals, layer, group), group)
        return rivals[seconds.index(min(seconds))]

    def _rivals(self, layer: Layer, group: Group) -> tuple[list[Kernel], str]:
        """Kernels that may be the fastest pair's, that of the fastest product first, and for what; else at most one."""
        spec, picked = self._spec("kernel", layer.picks), layer.pick("combine") or USUAL
        sums = self.adds_parts and not layer.both_ways
        ways = self._ways(layer, group, True) if picked == AUTO and sums else [picked]
        if build_kernel(spec).name != "auto" or not any(map(_is_fused, ways)):
            return [], ""
        piece = self.pieces(layer)[0]
        ranked = build_kernel(spec).ranked(piece, layer.tokens, layer.both_ways, self._slowest)
        able = [kernel for kernel in ranked if kernel.fuses]
        if picked != AUTO or not able or ranked[0].fuses:
            return (able or ranked)[:1], ""
        rivals = [ranked[0], *able]
        names = " or ".join(kernel.name for kernel in rivals)
        return rivals, f"{self._decides(layer)} {spec}: {names}, by {' '.join(ways)}"

    def _of_each(self, rivals: list[Kernel], layer: Layer, group: Group) -> list[float]:
        """What a call takes by each kernel in its fastest way; infinitely many from the first on of which some way
        cannot be asked: what these GPUs lack, kernels that sum by themselves lack too."""
        found = [math.inf] * len(rivals)
        for index, kernel in enumerate(rivals):
            self._kernel = kernel
            self.hold_own(layer)
            seconds = self._seconds(self._ways(layer, group, self._fuses), layer, group)
            # The weights of one are held at a time, as is estimated.
            self._modules.clear()
            vars(self).pop("weight", None)
            if not math.isfinite(max(seconds)):
                break
            found[index] = min(seconds)
        return found


def _is_fused(spec: str) -> bool:
    return combine_of(spec)[0].is_fused
