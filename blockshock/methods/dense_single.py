"""One dense GPU: what everybody has before they add a second."""

from __future__ import annotations

from typing import ClassVar

import torch

from blockshock.machine import Entry, Exit, Group
from blockshock.methods.base import METHODS
from blockshock.methods.dense import Dense
from blockshock.methods.in_formats import InFormats
from blockshock.methods.kinds import Role, Span
from blockshock.methods.layer import Layer
from blockshock.methods.product import sum_of_products

_EXIT = Exit()


class Single(InFormats):
    """One weight on one device. Every rank computes the whole product by itself; no communication."""

    span, role = Span.ONE, Role.RIVAL
    axes: ClassVar[tuple[str, ...]] = ("format",)
    entry: Entry = Entry()

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        self.weight = self.hold(layer, layer.source.bias)
        self._mark_split()

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return sum_of_products(x_BK, (self.weight,), self.entry, _EXIT)


@METHODS.register("dense_single")
class DenseSingle(Dense, Single):
    """All of W on one device. Stores W (N × K)."""
