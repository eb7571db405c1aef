"""Which optimizers train a part of a matrix as they train the whole: those that act elementwise; others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from inspect import unwrap
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import Optimizer

from blockshock.errors import InputError
from blockshock.machine import Borrowed

T = TypeVar("T", bound=type[Optimizer])

_ELEMENTWISE: list[type[Optimizer]] = [
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
]
_WHOLE = ("Adafactor", "LBFGS", "Muon")
"""Those of torch that look at whole matrices, or at all parameters at once."""


def elementwise(kind: T) -> T:
    """Say that an optimizer is one that trains a part of a matrix as it trains the whole; returns it.

    It is if what it adds to an element of a parameter depends on nothing but that element, its gradients, and numbers
    that are the same for all elements. torch's own are known.
    """
    _ELEMENTWISE.append(kind)
    return kind


def check_parts(kind: Any, parts: Mapping[torch.Tensor, Borrowed]) -> None:
    """Of an optimizer of a kind, and the parts of matrices that it holds, with the ranks that hold the others.

    Raises:
        InputError: there are some, and it is not known to act elementwise; or a group of ranks is destroyed.
    """
    part, name = next(iter(parts), None), kind.__name__
    if part is None or (parts[part].group and _is_elementwise(kind, kind.step, len(_ELEMENTWISE))):
        return
    known = any(parent.__name__ in _WHOLE for parent in kind.__mro__)
    otherwise = f" If it acts elementwise, say so once: blockshock.elementwise({name})"
    raise InputError(
        f"{name} {'looks at' if known else 'may look at'} whole matrices, or at all parameters at once, and this one "
        f"{tuple(part.shape)} of a layer is a part of a matrix, so its step would not be that of the whole: give the "
        f"layer's parameters() to an optimizer that acts elementwise, such as AdamW or SGD.{'' if known else otherwise}"
    )


def check_within(kind: Any, follows: bool) -> None:
    """Raises InputError for an optimizer that computes losses within its step, where layers of ours follow it: what
    multiplies is packed once that ends."""
    if follows and any(parent.__name__ == "LBFGS" for parent in kind.__mro__):
        raise InputError(
            f"{kind.__name__} computes losses in the midst of its step, and a layer multiplies by what is packed when "
            "that ends: give its parameters() to an optimizer that steps once for each gradient, such as AdamW or SGD"
        )


@lru_cache(maxsize=32)
def _is_elementwise(kind: Any, step: Any, known: int) -> bool:
    """Whether a kind of optimizers is known to be, whose ``step`` that is, with so many known."""
    # A subclass that steps in its own way may do anything.
    return any(issubclass(kind, one) and unwrap(step) is unwrap(one.step) for one in _ELEMENTWISE)
