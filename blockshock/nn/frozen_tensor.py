"""What stands for the weight and the bias of a layer that only goes forward, where modules of torch ask for them.

A tensor would be multiplied in the layer's place, by the fast path of ``nn.TransformerEncoderLayer`` say, and nothing
of its method or format would be left in y. That path stands back from arguments that have a ``__torch_function__``, and
the layer is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.errors import InputError


class NotReadable(InputError, AttributeError):
    """An attribute of a tensor that the weight or bias of a layer which only goes forward does not have."""


class FrozenTensor:
    """The weight (out_features, in_features) or the bias (out_features,) of a ``FrozenLinear``: all but its values.

    Of torch's functions it knows ``linear``, of the two of one layer: that layer's product. Others raise InputError.

    Attributes:
        layer: whose it is.
        name: ``weight`` or ``bias``.
        shape, dtype, device: the dtype is that of the products.
        requires_grad: never.
    """

    layer: Any
    name: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad = False

    def __init__(self, layer: Any, name: str) -> None:
        shape = (layer.out_features, layer.in_features) if name == "weight" else (layer.out_features,)
        of_layer = {"dtype": layer.layer.dtype, "device": layer.layer.device}
        vars(self).update({"layer": layer, "name": name, "shape": torch.Size(shape)} | of_layer)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        raise InputError(
            f"{func.__name__} reads the weight or bias of a frozen layer, which has them packed, and would pass the "
            "layer by: leave it out of what is replaced, by where= (what torch's MultiheadAttention holds is left out "
            "by replace_linears itself)"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copies and pickles look for
            raise AttributeError(name)
        raise NotReadable(
            f"the {vars(self).get('name')} of a frozen layer is packed, and has a shape, a dtype and a device, but no "
            f"{name}: call the layer, or read the nn.Linear that it was made of"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise NotReadable(
            f"the {self.name} of a frozen layer is packed, and shown anew to who asks: {name} of it would be lost: "
            "set the model's weights before its layers are replaced"
        )


def _linear(input: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    """What a layer makes of x, where ``linear`` is given what stands for its weight and its bias."""
    layer: nn.Module | None = weight.layer if isinstance(weight, FrozenTensor) and weight.name == "weight" else None
    if layer is not None:
        own = layer.bias
        same = bias is None if own is None else isinstance(bias, FrozenTensor) and bias.layer is layer
        if same and not isinstance(input, FrozenTensor):
            y: torch.Tensor = layer.forward(input)
            return y
    raise InputError(
        "linear is given the weight or the bias of a frozen layer, and something else beside it: these are packed into "
        "one product, so give it both of the layer, or leave the layer out of what is replaced, by where="
    )
