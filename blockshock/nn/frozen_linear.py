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
from blockshock.nn.frozen_tensor import FrozenTensor
from blockshock.nn.nested import is_nested, map_rows
from blockshock.nn.replaceable import take_over
from blockshock.nn.suitable import settle


class FrozenLinear(nn.Module):
    """y = x Wᵀ + b by a method of the table, packed for forward passes alone, as the suite times them.

    A ``MethodLinear`` holds what training needs beside: a packing of Wᵀ, or W′ dense, and a parameter. Arguments and
    errors are those of ``MethodLinear``. Its ``weight`` and ``bias`` have a shape, a dtype and a device, and no values.
    """

    _has_bias = True  # of layers that were pickled when they did not say

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
        self._casts, self._has_bias = dtype is not None, found.bias is not None
        take_over(linear, self)

    @property
    def weight(self) -> FrozenTensor:
        """What stands for it, for modules of torch that look at it before they call the layer."""
        return FrozenTensor(self, "weight")

    @property
    def bias(self) -> FrozenTensor | None:
        """The same of the bias; None without one."""
        return FrozenTensor(self, "bias") if self._has_bias else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (…, in_features) → y (…, out_features), in the dtype given to the layer, under autocast too."""
        x = input
        if is_nested(x, self.in_features):
            return map_rows(self.forward, x)
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

    def to_linear(self) -> nn.Linear:
        """Raises InputError: a packing need not give back what went into it."""
        raise InputError(
            f"a {type(self).__name__} holds its weight packed alone, in {self.row.name}, and gives no nn.Linear back: "
            "keep the one that it was made of, or a copy or the state of the model from before it was replaced; and "
            "for what a pruner keeps, take to_linear() of a MethodLinear (frozen=False) of the same row"
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """What ``layer.weight = parameter`` comes to: refused, for it would not be what multiplies."""
        if name in ("weight", "bias"):
            raise InputError(
                f"the {name} of a {type(self).__name__} is packed, and no parameter: tie or set the model's weights "
                "before its layers are replaced"
            )
        super().register_parameter(name, param)

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
