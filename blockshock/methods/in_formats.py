"""Methods that multiply by whole rows of W, and so in a format too: a row has one scale, whoever holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from blockshock.kernels import PackedDenseQuantised
from blockshock.matrices import Mask
from blockshock.measure import Sums
from blockshock.methods.base import Method
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight


class InFormats(Method):
    """A method one of whose axes is ``format``; its rank's rows of W are dense, unless another class has it otherwise.

    Of part of W's columns each rank would have scales of its own, and of x too: such methods take no format.
    """

    @classmethod
    def promised(cls, picks: Mapping[str, str | Mask]) -> Promise:
        """A format makes weights of its own."""
        return cls.promise if picks.get("format", "plain") == "plain" else Promise.OWN_WEIGHTS

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if layer.format is None:
            return super().hold(layer, bias, adds_bias)
        return PackedDenseQuantised(layer.source, bias, layer.format, self.rows)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        N = len(range(shape.N)[cls.part(shape, 0)[0]])
        if shape.format is None:
            return WeightEstimate.dense(N * shape.K, shape)
        held = PackedDenseQuantised.held_bytes(N, shape.K, shape.format)
        return WeightEstimate(held, held)

    @property
    def roundings(self) -> int:
        return max(packed.roundings for packed in self.packings())

    @property
    def sums(self) -> Sums:
        return self.packings()[0].sums
