"""What the rivals hold: W as it is, in the order of ``nn.Linear`` or in the other one."""

from __future__ import annotations

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
    """

    def __init__(self, layer: Layer, group: Group, transposed: bool = False) -> None:
        self.transposed = transposed
        super().__init__(layer, group)

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        if not self.transposed:
            return super().hold(layer, bias, adds_bias)
        if layer.format is not None:
            raise InputError(
                f"transposed=yes in format {layer.format.name}: products in eight bits take W row by row: leave "
                "transposed=yes out, or take format plain"
            )
        return layer.weight(layer.source.gather_transposed(self.columns, self.rows), bias, adds_bias)
