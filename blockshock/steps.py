"""What the step of any torch optimizer means to weights that are packed: they are packed again when it ends.

torch calls the two hooks below around every optimizer's ``step``. They touch no optimizer that holds none of our
parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from blockshock.collectives import Group
from blockshock.errors import InputError


class Follower(Protocol):
    """Something that must be told when an optimizer changed its parameters."""

    def after_step(self) -> None: ...


# Links stand beside the tensors: on them, they would be copied and pickled along, and a weak reference cannot be.
_followers: MutableMapping[torch.Tensor, weakref.ref[Follower]] = WeakTensorKeyDictionary()
_successors: MutableMapping[torch.Tensor, TensorWeakRef] = WeakTensorKeyDictionary()
_split: MutableMapping[torch.Tensor, Group] = WeakTensorKeyDictionary()


def follow(parameter: nn.Parameter, follower: Follower) -> None:
    """From now on the follower is told of each step of an optimizer that holds the parameter."""
    _followers[parameter] = weakref.ref(follower)


def follower_of(parameter: torch.Tensor) -> Follower | None:
    """Who follows the parameter."""
    reference = _followers.get(parameter)
    return None if reference is None else reference()


def mark_split(parameter: nn.Parameter, group: Group) -> None:
    """Say that the ranks of the group hold other parts of what the parameter is a part of."""
    if group.size() > 1:
        _split[parameter] = group


def split_over(parameter: torch.Tensor) -> list[Group]:
    """The groups of ranks over which a tensor is split: as it is marked, or as a DTensor is sharded."""
    if (group := _split.get(parameter)) is not None:
        return [group]
    return [
        parameter.device_mesh.get_group(dimension)  # type: ignore[attr-defined]
        for dimension, placement in enumerate(getattr(parameter, "placements", ()))
        if not (placement.is_replicate() or placement.is_partial())
    ]


def replace(old: torch.Tensor, new: torch.Tensor) -> None:
    """Say that a layer with the parameter ``new`` took the place of one with ``old``."""
    _successors[old] = TensorWeakRef(new)


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raises InputError where the optimizer holds the parameter of a layer that was replaced, and would not train."""
    for parameter in _parameters(optimizer):
        reference = _successors.get(parameter)
        successor = None if reference is None else reference()
        if successor is not None and parameter.grad is None and successor.grad is not None:
            raise InputError(
                f"this optimizer holds a parameter {tuple(parameter.shape)} of an nn.Linear that a BlockShockLinear "
                "replaced: build the optimizer after the layer is replaced, from the model's parameters()"
            )


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    followers = {id(found): found for parameter in _parameters(optimizer) if (found := follower_of(parameter))}
    for follower in followers.values():
        follower.after_step()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
