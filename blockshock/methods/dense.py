"""What the rivals hold: W as it is, in the order of ``nn.Linear`` or, of what only multiplies, in the other one."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine import Group
from blockshock.methods.in_formats import InFormats
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight


class Dense(InFormats):
    """A method that holds a dense weight.

    Args:
        transposed: memory holds Wᵀ, output features one beside the other, from which a product of few tokens reads at a
            higher rate (docs/measuring.md says by how much).

    Raises:
        InputError: the transposed weight is to be trained, or of a format.
    """

    def __init__(self, layer: Layer, group: Group, transposed: bool = False) -> None:
        if reason := _why_not(layer, transposed):
            raise InputError(reason)
        self.transposed = transposed
        super().__init__(layer, group)

    @classmethod
    def unsuitable(cls, layer: Layer, transposed: bool = False, **parameters: Any) -> str | None:
        return _why_not(layer, transposed) or super().unsuitable(layer, **parameters)

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if not self.transposed:
            return super().hold(layer, bias, adds_bias)
        return layer.weight(layer.source.gather_transposed(self.columns, self.rows), bias, adds_bias)


def _why_not(layer: Layer, transposed: bool) -> str | None:
    if not transposed:
        return None
    if layer.training is not None:
        return "transposed=yes holds weights that are not trained: leave it out of a layer that is"
    if layer.format is not None:
        return (
            f"transposed=yes has no format {layer.format.name}, for products in eight bits read W row by row: leave it "
            "out, or take format plain"
        )
    return None
