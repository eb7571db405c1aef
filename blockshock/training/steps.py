"""What the step of any torch optimizer means to weights that are packed: they are packed again when it ends.

torch calls the two hooks below around every optimizer's ``step``, from the first parameter on that is followed. They
touch no optimizer that holds none of our parameters: which it holds is looked up once, for a model may have thousands
of others, and again when its lists of parameters or our links have changed. An optimizer that acts elementwise takes a
part of a matrix along the way of the whole; others are refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from blockshock.errors import InputError
from blockshock.machine import Borrowed, Group, torch_internals
from blockshock.training.elementwise import check_parts, check_within
from blockshock.training.group_options import keep_options


class Follower(Protocol):
    """Something that must be told when an optimizer changed its parameters: those of them that it holds."""

    def after_step(self, held: Sequence[torch.Tensor]) -> None: ...


# Links stand beside the tensors: on them, they would be copied and pickled along, and a weak reference cannot be.
_followers: MutableMapping[torch.Tensor, weakref.ref[Follower]] = WeakTensorKeyDictionary()
_preparers: MutableMapping[torch.Tensor, weakref.WeakMethod[Callable[..., None]]] = WeakTensorKeyDictionary()
_successors: MutableMapping[torch.Tensor, tuple[TensorWeakRef, str]] = WeakTensorKeyDictionary()
_split: MutableMapping[torch.Tensor, Borrowed] = WeakTensorKeyDictionary()
_linked = 0
"""How often a parameter got another link: what is known of an optimizer is known as of then."""


def _link(links: MutableMapping[torch.Tensor, Any], parameter: torch.Tensor, link: Any) -> None:
    global _linked
    links[parameter] = link
    _linked += 1


def follow(parameter: torch.Tensor, follower: Follower) -> None:
    """From now on the follower is told of each step of an optimizer that holds the parameter."""
    _watch_steps()
    if follower_of(parameter) is not follower:  # it says so after each step
        _link(_followers, parameter, weakref.ref(follower))


def prepare(parameter: torch.Tensor, method: Callable[..., None]) -> None:
    """From now on a followed parameter's steps begin with this: of the optimizer, and whether it is given a closure."""
    _link(_preparers, parameter, weakref.WeakMethod(method))


def follower_of(parameter: torch.Tensor) -> Follower | None:
    """Who follows the parameter."""
    reference = _followers.get(parameter)
    return None if reference is None else reference()


def mark_split(parameter: torch.Tensor, group: Group) -> None:
    """Say that the parameter is a part of a matrix, whose other parts the ranks of the group hold."""
    _link(_split, parameter, Borrowed(group))


def part_of(parameter: torch.Tensor) -> Group | None:
    """The group that the parameter is so marked with."""
    borrowed = _split.get(parameter)
    return None if borrowed is None else borrowed.group


def split_over(parameter: torch.Tensor) -> list[Group]:
    """The groups of ranks over which a tensor is split: as it is marked, or as a DTensor is sharded."""
    group = part_of(parameter)
    sharded = [
        parameter.device_mesh.get_group(dimension)  # type: ignore[attr-defined]
        for dimension, placement in enumerate(getattr(parameter, "placements", ()))
        if not (placement.is_replicate() or placement.is_partial())
    ]
    return sharded if group is None or group.size() == 1 else [group, *sharded]


def replace(old: torch.Tensor, new: torch.Tensor, kind: str) -> None:
    """Say that a layer of a kind, with the parameter ``new``, took the place of an ``nn.Linear`` with ``old``."""
    _link(_successors, old, (TensorWeakRef(new), kind))


class _ByIdentity(TorchFunctionMode):
    """Within it a tensor is equal to itself alone: lists of them compare in C, which asks of no tensor about itself."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> bool:
        return False


_BY_IDENTITY = _ByIdentity()


@dataclass
class Links:
    """Those of an optimizer's parameters that are linked.

    Attributes:
        held: all that it held then, group by group.
        linked: how many links there were then.
        parts: those that are a part of a matrix, and the ranks that hold the others.
        followers: of any of them, each once, with those that it follows.
        preparers: of any of them.
        replaced: with what took their place, in a layer of which kind, and whether the optimizer holds that too.
        settled: a step of it was looked at, and what would refuse the next does not change.
    """

    held: list[list[torch.Tensor]]
    linked: int
    parts: dict[torch.Tensor, Borrowed]
    followers: list[tuple[weakref.ref[Follower], list[torch.Tensor]]]
    preparers: list[weakref.WeakMethod[Callable[..., None]]]
    replaced: list[tuple[torch.Tensor, TensorWeakRef, str, bool]]
    settled: bool = False


_known: dict[int, Links] = {}  # by the id of an optimizer that lives: to look for what is equal to it takes longer


def links_of(optimizer: Optimizer) -> Links:
    """What is linked of that which the optimizer holds now."""
    lists = [group["params"] for group in optimizer.param_groups]
    known = _known.get(id(optimizer))
    if known is not None and known.linked == _linked:
        with _BY_IDENTITY:
            if lists == known.held:
                return known
    held = [list(parameters) for parameters in lists]
    every = [parameter for parameters in held for parameter in parameters]
    identities, replaced = set(map(id, every)), []
    for parameter in every:
        if successor := _successors.get(parameter):
            replaced.append((parameter, *successor, id(successor[0]()) in identities))
    parts = {parameter: _split[parameter] for parameter in every if parameter in _split}
    followers: dict[int, tuple[weakref.ref[Follower], list[torch.Tensor]]] = {}
    for parameter in every:
        if reference := _followers.get(parameter):
            followers.setdefault(id(reference), (reference, []))[1].append(parameter)
    preparers = [_preparers[parameter] for parameter in every if parameter in _preparers]
    links = Links(held, _linked, parts, [*followers.values()], preparers, replaced)
    if isinstance(optimizer, Optimizer):  # scalers take what is like one
        if id(optimizer) not in _known:
            weakref.finalize(optimizer, _known.pop, id(optimizer))
        if any(borrowed.group is not None and borrowed.group.size() > 1 for borrowed in parts.values()):
            keep_options(optimizer, lambda parameter: follower_of(parameter) is not None)
        _known[id(optimizer)] = links
    return links


def check_elementwise(optimizer: Optimizer) -> None:
    """Raises InputError where the optimizer holds a part of a matrix and is not known to act elementwise."""
    check_parts(type(optimizer), links_of(optimizer).parts)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raises InputError where the optimizer is refused, or holds parameters of a layer that was replaced."""
    links = links_of(optimizer)
    if links.settled:
        return
    check_parts(type(optimizer), links.parts)
    check_within(type(optimizer), bool(links.followers))
    for parameter, reference, kind, holds_both in links.replaced:
        if (successor := reference()) is None or successor.grad is None:
            continue
        if parameter.grad is None or not (holds_both or parameter.grad.any()):  # zeros, where it is set to these
            raise InputError(
                f"this optimizer holds a parameter {tuple(parameter.shape)} of an nn.Linear that a {kind} "
                "replaced: build the optimizer after the layer is replaced, from the model's parameters()"
            )
        if holds_both:
            raise InputError(
                f"this optimizer trains a {kind} and, beside it, the nn.Linear {tuple(parameter.shape)} that "
                "it was made from, which stood in more places than one: put the layer in all of them; to train both, "
                "make the layer from a copy.deepcopy() of the nn.Linear"
            )
    for told in links.preparers:
        if (method := told()) is not None:
            method(optimizer, len(args) > 1 or kwargs.get("closure") is not None)
    split = any(borrowed.group.size() > 1 for borrowed in links.parts.values())  # over ranks, which may be gone
    links.settled = not (links.replaced or links.preparers or split)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for reference, held in (_known.get(id(optimizer)) or links_of(optimizer)).followers:
        if (follower := reference()) is not None:
            follower.after_step(held)


@cache
def _watch_steps() -> None:
    """From now on torch calls both around each step."""
    register_optimizer_step_pre_hook(_as_it_is(_before_step))
    register_optimizer_step_post_hook(_as_it_is(_after_step))


def _as_it_is(hook: Callable[[Optimizer, Any, Any], None]) -> Callable[[Optimizer, Any, Any], None]:
    """The hook, which compiled code does not trace."""
    untraced = torch_internals.uncompiled(hook)

    def run(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        (untraced if torch.compiler.is_dynamo_compiling() else hook)(optimizer, args, kwargs)

    return run
