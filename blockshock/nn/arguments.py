"""What users hand to a layer, looked at before anything is done with it: what does not fit is said in words.

Values are looked at where they are used; here only of what kind they are.
"""

from __future__ import annotations

from typing import Any

import torch

from blockshock.errors import InputError
from blockshock.machine import combine_of
from blockshock.matrices import MOST_FEATURES, Mask
from blockshock.methods import Method
from blockshock.registry import check_range
from blockshock.training import is_shard


def check_picks(mask: Any, kernel: Any, storage: Any, combine: Any) -> None:
    """Raises InputError or UnknownName, which names the first that is not what a BlockShockLinear takes."""
    if torch.is_tensor(mask):
        raise InputError(
            "mask= takes a name or a Mask, got a tensor: wrap a boolean (out_features, in_features) tensor of the "
            "first half in blockshock.matrices.masks.DenseMask"
        )
    if not (mask is None or isinstance(mask, (str, Mask))):
        raise InputError(f"mask= takes a name such as 'tile', a Mask, or None, got {mask!r}")
    for option, value in (("kernel", kernel), ("storage", storage), ("combine", combine)):
        if not isinstance(value, str):
            raise InputError(f"{option}= takes a name, got {value!r}: leave it out for the default")
    combine_of(combine)  # which one rank has no use for, but several will


def check_options(dtype: Any, tokens: Any) -> None:
    """The same of what every layer takes."""
    if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
        raise InputError(f"dtype= takes a floating-point dtype such as torch.bfloat16, or None, got {dtype!r}")
    if type(tokens) is not int:
        raise InputError(f"tokens= takes a whole number of rows of x, got {tokens!r}")
    check_range(1, MOST_FEATURES, tokens=tokens)


def check_widths(**widths: Any) -> None:
    """The same of the features of a block."""
    for name, value in widths.items():
        if type(value) is not int:
            raise InputError(f"{name}= takes a whole number of features, got {value!r}")
        check_range(1, MOST_FEATURES, **{name: value})


def check_x(x: Any, in_features: int) -> None:
    """Raises InputError unless x is a dense tensor (…, in_features) of floating-point numbers."""
    if not isinstance(x, torch.Tensor):
        raise InputError(f"x must be a tensor, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else str(x.layout)
        raise InputError(f"x must be a dense tensor, this one is {kind}: pass its to_dense(), or padded rows")
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise InputError(f"x must be (B, {in_features}), with any dimensions for B, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise InputError(f"x must be of floating-point numbers, got {x.dtype}")
    if is_shard(x):
        raise InputError(
            "x is a DTensor: BlockShockParallel takes one in a plan; elsewhere pass a plain x that is the same on "
            "all ranks, as x.full_tensor() is"
        )


def takes_as_it_is(x: Any, layer: Method) -> bool:
    """Whether a layer multiplies x as it is, as can be told at once of most: neither ``check_x`` nor the layer
    finds anything in those."""
    return (
        type(x) is torch.Tensor
        and x.dtype is layer.dtype
        and x.device == layer.device
        and x.layout is torch.strided
        and not x.is_nested
        and x.ndim > 0
        and x.shape[-1] == layer.K
        and not torch.is_autocast_enabled(layer.device.type)
    )
