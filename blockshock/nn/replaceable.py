"""Which ``nn.Linear`` a layer can take the place of, and what comes along: one that computes x Wᵀ + b, with W its own.

What else it computes, holds or shares would be lost in silence, so it is refused.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from copy import copy
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune

from blockshock.errors import InputError
from blockshock.machine import torch_internals

_HELD = ("weight", "bias")


def check_plain(linear: nn.Module, name: str) -> None:
    """Raises InputError, which says what to do, unless all that the module computes is x Wᵀ + b of W and b that it
    holds.

    Args:
        name: of what is to take its place.
    """
    if not isinstance(linear, nn.Linear):
        raise InputError(f"{name} takes the nn.Linear that it is to compute, got {type(linear).__name__}")
    if "forward" in vars(linear) or type(linear).forward is not nn.Linear.forward:
        raise InputError(
            f"this {type(linear).__name__} has a forward of its own, which a {name} would drop: fold what it "
            "adds into the weight of an nn.Linear (of adapters: merge them), and replace that"
        )
    for held in _HELD:
        _check_held(linear, held)
    others = [*linear._parameters, *linear._buffers, *linear._modules]
    if lost := [other for other in others if other not in _HELD]:
        raise InputError(f"this nn.Linear holds {', '.join(lost)} beside its weight and bias, which would be lost")


def check_replaceable(linear: nn.Module, name: str) -> None:
    """The same, and that W and b are parameters like any, and no other module's.

    Args:
        name: of what is to take its place.
    """
    check_plain(linear, name)
    assert isinstance(linear, nn.Linear)
    for held in _HELD:
        _check_parameter(linear, held)
    for held in _HELD:
        _check_untied(linear, held)
    if linear.weight.is_meta:
        raise InputError("the nn.Linear lies on the meta device: give it values (to_empty, then load) first")


def _check_held(linear: nn.Linear, name: str) -> None:
    """That a weight or bias is a parameter, and nothing makes it."""
    if name not in linear._parameters:
        raise InputError(
            f"the {name} of this nn.Linear is no parameter but made of others at each forward pass: make it one first, "
            f"by {_undoing(linear, name)}"
        )
    if isinstance(linear._parameters[name], UninitializedParameter):
        raise InputError(f"the {name} of this {type(linear).__name__} has no shape yet: call it on an input first")


def _check_parameter(linear: nn.Linear, name: str) -> None:
    """That it is a plain one, and nothing watches it."""
    held = linear._parameters[name]
    if held is None:
        return
    if type(held) is not nn.Parameter:
        raise InputError(
            f"the {name} of this nn.Linear is a {type(held).__name__}: replace the layer before it is sharded, "
            "quantized or wrapped, while its parameters are plain ones"
        )
    if held._backward_hooks or getattr(held, "_post_accumulate_grad_hooks", None):
        raise InputError(
            f"the {name} of this nn.Linear has hooks on its gradient, which those of halves would pass by: remove "
            "them, and register what they do on the layer's parameters()"
        )


def _undoing(linear: nn.Linear, name: str) -> str:
    """The call that makes a weight a parameter again."""
    if parametrize.is_parametrized(linear, name):
        return f"torch.nn.utils.parametrize.remove_parametrizations(linear, {name!r})"
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return f"torch.nn.utils.prune.remove(linear, {name!r}); what was pruned is zero then, and trains"
        if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
            norm = "weight" if type(hook).__name__ == "WeightNorm" else "spectral"
            return f"torch.nn.utils.remove_{norm}_norm(linear)"
    return f"linear.register_parameter({name!r}, …)"


def _check_untied(linear: nn.Linear, name: str) -> None:
    # Most have no other reference at all, and nothing needs to be searched.
    alone = nn.Linear(1, 1, device="meta")
    if linear._parameters[name] is None or (
        sys.getrefcount(linear._parameters[name]) <= sys.getrefcount(alone._parameters[name])
    ):
        return
    if next(_other_owners(linear, name), None) is not None:
        gc.collect()  # a module that nobody uses any more may be waiting for it
        for owner in _other_owners(linear, name):
            raise InputError(
                f"the {name} of this nn.Linear is tied: it is also that of another module ({owner}), and a layer in "
                f"its place would train one of its own. Untie it first, if that is meant: linear.{name} = "
                f"nn.Parameter(linear.{name}.detach().clone()); else leave this one dense"
            )


def _other_owners(linear: nn.Linear, name: str) -> Iterator[str]:
    """The kinds of other modules that hold the same parameter."""
    for held in gc.get_referrers(linear._parameters[name]):
        if type(held) is dict and held is not linear._parameters:
            for attributes in gc.get_referrers(held):
                if type(attributes) is dict and attributes.get("_parameters") is held:
                    owners = (type(owner) for owner in gc.get_referrers(attributes))
                    yield next(kind.__name__ for kind in owners if issubclass(kind, nn.Module))


def places_in_memory(model: nn.Module) -> dict[int, list[str]]:
    """The names of the model's parameters by where they lie: of some several, which are tied by their ``data``."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        if type(parameter) is nn.Parameter and not parameter.is_meta and parameter.numel():
            found.setdefault(parameter.data_ptr(), []).append(name)
    return found


def why_tied(linear: nn.Linear, memory: dict[int, list[str]]) -> str | None:
    """Why a layer would be untied by being replaced: tied by their ``data``, parameters are two."""
    for name, held in linear.named_parameters(recurse=False):
        if type(held) is nn.Parameter and not held.is_meta and len(names := memory.get(held.data_ptr(), ())) > 1:
            return (
                f"its {name} lies in the memory of another parameter ({' and '.join(names)}), and a layer in its place "
                "would train one of its own: untie it first, if that is meant, by a parameter of its own"
            )
    return None


def take_over(linear: nn.Module, layer: nn.Module) -> None:
    """Give a layer the hooks that the module which it replaces has now, and its mode. What either gets later is its."""
    vars(layer).update({name: copy(held) for name, held in hooks_of(linear).items()})
    layer.train(linear.training)
    bind_hooks(layer)


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that hold its hooks."""
    return {name: held for name, held in vars(module).items() if "hooks" in name or name == "_is_full_backward_hook"}


def bind_hooks(layer: nn.Module) -> None:
    """Let hooks that are called with their module be called with this one."""
    hooks = layer._load_state_dict_pre_hooks
    for key, hook in hooks.items():
        hooks[key] = torch_internals.bind_hook(hook, layer)
