"""One dense GPU: what everybody has before they add a second."""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.kernels import PackedDenseQuantised
from blockshock.machine import Entry, Exit, Group
from blockshock.measure import Sums
from blockshock.methods.base import METHODS, Method
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Role, Span
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight, sum_of_products

_EXIT = Exit()


@METHODS.register("dense_single")
class DenseSingle(Method):
    """All of W on one device. Every rank computes the whole product by itself; no communication.

    Stores W (N × K).
    """

    span, role = Span.ONE, Role.RIVAL
    axes: ClassVar[tuple[str, ...]] = ("format",)
    entry: Entry = Entry()

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.weight = self.hold(layer, layer.source.bias)
        self._mark_split()

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if layer.format is None:
            return super().hold(layer, bias, adds_bias)
        return PackedDenseQuantised(layer.source, bias, layer.format)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        if shape.format is None:
            return WeightEstimate.dense(shape.N * shape.K, shape)
        held = PackedDenseQuantised.held_bytes(shape.N, shape.K, shape.format)
        return WeightEstimate(held, held)

    @property
    def roundings(self) -> int:
        return max(packed.roundings for packed in self.packings())

    @property
    def sums(self) -> Sums:
        return self.packings()[0].sums

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return sum_of_products(x_BK, (self.weight,), self.entry, _EXIT, self.joined)
