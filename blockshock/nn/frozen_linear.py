"""A row in the place of an ``nn.Linear`` of a model that only goes forward: no gradients, no state, half the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.matrices import TensorWeights
from blockshock.methods import Layer, Row
from blockshock.nn.arguments import check_x
from blockshock.nn.replaceable import take_over
from blockshock.nn.suitable import settle


class FrozenLinear(nn.Module):
    """y = x Wᵀ + b by a method of the table, packed for forward passes alone, as the suite times them.

    A ``MethodLinear`` holds what training needs beside: a packing of Wᵀ, or W′ dense, and a parameter. Arguments and
    errors are those of ``MethodLinear``.
    """

    def __init__(
        self,
        linear: nn.Linear,
        row: str | Row,
        group: Any = None,
        *,
        dtype: torch.dtype | None = None,
        tokens: int = 1024,
        inputs: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        found = settle(self, linear, row, group, dtype=dtype, tokens=tokens, inputs=inputs, frozen=True)
        self.in_features, self.out_features, self.row = linear.in_features, linear.out_features, found.row
        source = TensorWeights(found.weight, found.bias).cast(found.source.dtype)
        self.layer = found.build(Layer(source, self.row.picks, tokens)).requires_grad_(False)
        self._casts = dtype is not None
        take_over(linear, self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (…, in_features) → y (…, out_features), in the dtype given to the layer, under autocast too."""
        x = input
        check_x(x, self.in_features)
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"a {type(self).__name__} only goes forward: call the model under torch.inference_mode(), or leave "
                "frozen=True out for layers that train"
            )
        device = self.layer.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(x.to(self.layer.dtype))
        if self._casts:
            x = x.to(self.layer.dtype)
        y: torch.Tensor = self.layer(x.reshape(-1, x.shape[-1]))
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.row.name}"

    def _save_to_state_dict(self, *args: object, **kwargs: object) -> None:
        raise InputError(f"a {type(self).__name__} has no state: save the model's before it is replaced, with its row")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FrozenLinear:
        here = torch.empty(0, dtype=self.layer.dtype, device=self.layer.device)
        there = fn(here)
        if (here.dtype, here.device) != (there.dtype, there.device):
            raise InputError(
                f"a {type(self).__name__} stays where it was built, in {here.dtype} on {here.device}: move or cast the "
                "model before its layers are replaced"
            )
        return self
