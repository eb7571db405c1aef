"""Groups of four along a dimension, which all of 2:4 is about."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""In which numbers are compared and added."""


def check_dense(**tensors: Any) -> None:
    """Raises InputError, which names the first that is no tensor, or lies in memory as no dense one does."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{name} must be a tensor, got {type(x).__name__}")
        if not torch.compiler.is_compiling() and x.layout != torch.strided:  # compilers know nothing of layouts
            raise InputError(f"{name} must be a dense tensor, this one is {x.layout}: pass its to_dense()")


def check_matrix(x: torch.Tensor) -> None:
    """Raises InputError unless x is a dense matrix."""
    check_dense(x=x)
    if x.ndim != 2:
        raise InputError(f"a 2:4 matrix is made of a matrix (N, K), got {tuple(x.shape)}")


def in_fours(x: torch.Tensor, dim: int, name: str = "x") -> tuple[torch.Tensor, int]:
    """The same memory as ``(…, size / 4, 4, …)``, and the dimension of the four.

    Raises:
        InputError: ``x`` is no dense tensor, it has no such dimension, its size is not a multiple of four, or the dtype
            is not one of those above.
    """
    check_dense(**{name: x})
    if x.dtype not in DTYPES:
        raise InputError(f"{name} must be of {', '.join(map(str, DTYPES))}, got {x.dtype}: cast it first")
    if not x.ndim:
        raise InputError(f"{name} is a single number, which has no groups of four: give it a dimension")
    if type(dim) is not int:
        raise InputError(f"dim takes the number of a dimension of {name}, got {dim!r}")
    if not -x.ndim <= dim < x.ndim:
        raise InputError(f"{name} {tuple(x.shape)} has no dimension {dim}: choose from {-x.ndim} to {x.ndim - 1}")
    dim %= x.ndim
    if x.shape[dim] % 4:
        raise InputError(
            f"dimension {dim} of {name} {tuple(x.shape)} must be a multiple of 4, for it is cut into groups of four: "
            "pad it with zeros"
        )
    return x.unflatten(dim, (-1, 4)), dim + 1
