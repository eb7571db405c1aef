"""Methods that multiply in a format too: a row of W has one scale, whoever holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
import torch.distributed as dist

from blockshock.kernels import Format, PackedDenseQuantised, row_scales
from blockshock.matrices import Mask, Piece
from blockshock.measure import Sums
from blockshock.methods.base import Method
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight


class InFormats(Method):
    """A method one of whose axes is ``format``. What a rank holds of W is dense, unless another class has it otherwise.

    Attributes:
        adds_parts: y is a sum of what parts of W's rows come to. Of x each token then has a scale in each rank's
            columns, and of W each output channel still one: all parts are stored by that of the whole row.
    """

    adds_parts: ClassVar[bool] = False

    @classmethod
    def promised(cls, picks: Mapping[str, str | Mask]) -> Promise:
        """A format makes weights of its own."""
        return cls.promise if picks.get("format", "plain") == "plain" else Promise.OWN_WEIGHTS

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if layer.format is None:
            return super().hold(layer, bias, adds_bias)
        piece, added = Piece(layer.source, self.columns, rows=self.rows), bias if adds_bias else None
        shared_N = self._shared_scales(layer.format, [piece])
        return PackedDenseQuantised(layer.source, added, layer.format, self.rows, self.columns, shared_N)

    def _shared_scales(self, format: Format | None, pieces: Iterable[Piece]) -> torch.Tensor | None:
        """Of the whole rows of which this rank holds these pieces, float32 (N,); None where each has whole rows. All
        ranks call it together."""
        if format is None or not self.adds_parts:
            return None
        found = [
            row_scales(piece.block if piece.mask is None else piece.kept_block, piece.N, piece.K, format, piece.device)
            for piece in pieces
        ]
        # Of NaN all ranks are to say the same.
        scale_N = torch.stack(found).amax(0).nan_to_num(nan=torch.inf, posinf=torch.inf)
        if self.ranks > 1:
            dist.all_reduce(scale_N, dist.ReduceOp.MAX, group=self.group)
        return scale_N

    @classmethod
    def met(cls, layer: Layer, x_BK: torch.Tensor, ranks: int = 1, back: bool = False) -> torch.Tensor:
        if layer.format is None:
            return x_BK
        shape, order = Shape.of(layer.source, ranks), layer.permutation
        found_BK = torch.empty_like(x_BK, dtype=torch.float64)
        for columns in (cls.part(shape, rank)[1] for rank in range(ranks)):
            channels = columns if order is None else order[columns].to(x_BK.device)
            found_BK[:, channels] = layer.format.represented(x_BK[:, channels])
        return found_BK

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        N, K = (len(range(size)[part]) for size, part in zip((shape.N, shape.K), cls.part(shape, 0), strict=True))
        if shape.format is None:
            return WeightEstimate.dense(N * K, shape)
        held = PackedDenseQuantised.held_bytes(N, K, shape.format)
        return WeightEstimate(held, held)

    @property
    def roundings(self) -> int:
        """Of a sum of parts the part's own, and one for each that is added."""
        return max(packed.roundings for packed in self.packings())

    @property
    def sums(self) -> Sums:
        return self.packings()[0].sums
