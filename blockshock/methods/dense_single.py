"""One dense GPU: what everybody has before they add a second."""

from __future__ import annotations

import torch
from torch import nn

from blockshock.autograd import linear
from blockshock.collectives import Group
from blockshock.methods.base import METHODS, Layer, Method, Shape, WeightEstimate


@METHODS.register("dense_single")
class DenseSingle(Method):
    """All of W on one device. Every rank computes the whole product by itself; no communication.

    Stores w_NK (N × K).
    """

    bias: torch.Tensor | None

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.w_NK = nn.Parameter(layer.source.gather(slice(None)))
        self.register_buffer("bias", layer.source.bias)

    @classmethod
    def estimate(cls, shape: Shape, kernel: str) -> WeightEstimate:
        size = shape.N * shape.K * shape.itemsize
        return WeightEstimate(size, size)

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return linear(x_BK, self.w_NK, self.bias)
