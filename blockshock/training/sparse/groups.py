"""Groups of four along a dimension, which all of 2:4 is about."""

from __future__ import annotations

import torch

from blockshock.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""In which numbers are compared and added."""


def in_fours(x: torch.Tensor, dim: int, name: str = "x") -> tuple[torch.Tensor, int]:
    """The same memory as ``(…, size / 4, 4, …)``, and the dimension of the four.

    Raises:
        InputError: ``x`` has no such dimension, its size is not a multiple of four, or the dtype is not one of those
            above.
    """
    if x.dtype not in DTYPES:
        raise InputError(f"{name} must be of {', '.join(map(str, DTYPES))}, got {x.dtype}: cast it first")
    if not -x.ndim <= dim < x.ndim:
        raise InputError(f"{name} {tuple(x.shape)} has no dimension {dim}: choose from {-x.ndim} to {x.ndim - 1}")
    dim %= x.ndim
    if x.shape[dim] % 4:
        raise InputError(
            f"dimension {dim} of {name} {tuple(x.shape)} must be a multiple of 4, for it is cut into groups of four: "
            "pad it with zeros"
        )
    return x.unflatten(dim, (-1, 4)), dim + 1
