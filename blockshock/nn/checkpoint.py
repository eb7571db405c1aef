"""The state of an optimizer as if all layers were dense, so that training goes on with any ranks, kernel and storage.

    torch.save({"model": model.state_dict(), "optimizer": optimizer_state(model, optimizer)}, path)

Momenta of a half or a shard lie as its parameter does. Here they come together to a tensor of the shape of ``weight``,
as a dense layer's optimizer has it, and are taken apart again when loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.methods import Method
from blockshock.nn.method_linear import MethodLinear
from blockshock.training import check_elementwise, gathered, is_shard, reshard, spread_as

State = dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """How what this rank holds of a dense parameter comes together to it, of this shape, and is taken apart again."""

    shape: tuple[int, ...]
    whole: Callable[[list[torch.Tensor], str], torch.Tensor]
    held: Callable[[torch.Tensor], list[torch.Tensor]]


def _of_bias(method: Method) -> _Part:
    """Of a bias that is split."""
    return _Part((method.N,), lambda held, what: method.whole_bias(held[0], what), lambda b_N: [b_N[method.rows]])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Plain tensors by the names of dense parameters, and the options of the groups; all ranks call it together.

    Returns:
        ``{"state": {"0.weight": {"exp_avg": (N, K), …}, …}, "groups": [{"lr": …}, …], "shapes": {"0.weight": (N, K),
        …}}``; loads with ``weights_only=True``.

    Raises:
        InputError: what the optimizer keeps of a layer could not be loaded: it does not act elementwise, or holds some
            of the layer's halves alone.
    """
    check_elementwise(optimizer)
    reshard(model)
    state, shapes = {}, {}
    for name, held, part in _parameters(model, optimizer):
        states = [optimizer.state[parameter] for parameter in held if parameter in optimizer.state]
        if states and len(states) < len(held):
            raise InputError(f"the optimizer has a state of one half of {name!r} alone: give it all parameters()")
        shapes[name] = _shape(held, part)
        if states:
            keys = states[0]
            state[name] = {key: _dense(f"{name}'s {key}", [one[key] for one in states], held, part) for key in keys}
    return {"state": state, "groups": [_options(group) for group in optimizer.param_groups], "shapes": shapes}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Load what ``optimizer_state`` returned, into an optimizer of the same kind and groups.

    Raises:
        InputError: a parameter of the model is not in the state, or of another shape, or the groups differ in number;
            nothing was loaded then.
    """
    if not {"state", "groups"} <= saved.keys() or not isinstance(saved["state"], dict):
        raise InputError("this is not what optimizer_state returned: it has no 'state' by names and no 'groups'")
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise InputError(f"the state has {len(saved['groups'])} groups, the optimizer {len(optimizer.param_groups)}")
    check_elementwise(optimizer)
    reshard(model)
    loaded: dict[torch.Tensor, State | None] = {}
    for name, held, part in _parameters(model, optimizer):
        loaded |= dict.fromkeys(held)
        loaded |= _loaded(name, held, part, saved)
    for parameter, state in loaded.items():
        if state is None:  # as it was when that was saved: before its first step, say
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = state
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(_options(options))


def _loaded(name: str, held: list[nn.Parameter], part: _Part | None, saved: State) -> dict[torch.Tensor, State]:
    """The states of what holds one dense parameter; none of one that had none when the state was saved."""
    states, shapes = saved["state"], saved.get("shapes", {})
    if name not in states and name not in shapes and states:
        raise InputError(f"the optimizer's state has no {name!r}; it has {', '.join(shapes or states)}")
    if name in shapes:
        _check_shape(name, shapes[name], held, part)
    found: dict[torch.Tensor, State] = {parameter: {} for parameter in held if name in states}
    for key, value in states.get(name, {}).items():
        # A half's states are of the dense shape; those of other parameters as their optimizer has them.
        if isinstance(value, torch.Tensor) and value.ndim and (part is not None or name not in shapes):
            _check_shape(name, value.shape, held, part)
        for parameter, one in zip(held, _taken_apart(value, held, part), strict=True):
            found[parameter][key] = one
    return found


def _check_shape(name: str, found: Iterable[int], held: list[nn.Parameter], part: _Part | None) -> None:
    if tuple(found) != _shape(held, part):
        raise InputError(f"the optimizer's state of {name!r} has shape {tuple(found)}, not {_shape(held, part)}")


def _options(group: State) -> State:
    """Copies of those of a group of parameters, some of which are tensors and are written to, but for what names them:
    each layout has names of its own."""
    return deepcopy({key: value for key, value in group.items() if key not in ("params", "param_names")})


def _shape(held: list[nn.Parameter], part: _Part | None) -> tuple[int, ...]:
    """Of the dense parameter."""
    return tuple(held[0].shape) if part is None else part.shape


def _parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, list[nn.Parameter], _Part | None]]:
    """Of each dense parameter that the optimizer holds its name and what holds it here: itself, or a layer's parts."""
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    seen: set[int] = set()
    for prefix, layer in model.named_modules():
        if isinstance(layer, MethodLinear):
            method, bias = layer.layer, layer.layer.bias
            parts = [storage.parameter for storage in method.storages()]
            dot = prefix and prefix + "."
            if any(id(part) in ours for part in parts):
                yield f"{dot}weight", parts, _Part((method.N, method.K), method.whole, method.held)
            if bias is not None and id(bias) in ours:
                yield f"{dot}bias", [bias], _of_bias(method) if method.splits_bias else None
            beside = method.trained_beside()
            yield from ((f"{dot}{name}", [held], None) for name, held in beside.items() if id(held) in ours)
            seen |= {id(parameter) for parameter in layer.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in ours and id(parameter) not in seen:
            yield name, [parameter], None


def _dense(what: str, values: list[Any], held: list[nn.Parameter], part: _Part | None) -> Any:
    first = values[0]
    if not isinstance(first, torch.Tensor):
        return deepcopy(first)
    if part is None or first.ndim == 0:
        return gathered(first, what).clone()
    if first.shape != held[0].shape:
        raise InputError(
            f"{what} is a tensor {tuple(first.shape)}, neither one number nor of the shape {tuple(held[0].shape)} of "
            "the half: it could not be loaded into another layout"
        )
    return part.whole(values, what)


def _taken_apart(value: Any, held: list[nn.Parameter], part: _Part | None) -> list[Any]:
    if not isinstance(value, torch.Tensor):
        return [deepcopy(value) for _ in held]
    if part is None or value.ndim == 0:
        # A number, such as Adam's step, lies where the optimizer keeps it: on a CPU, or where it is told to.
        return [value.clone() if value.ndim == 0 else _placed(value, parameter) for parameter in held]
    parts = part.held(value.to(held[0].device))
    return [spread_as(parameter, part) for parameter, part in zip(held, parts, strict=True)]


def _placed(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A copy of an optimizer's state, of the parameter's shape or another one, where the parameter lies."""
    copied = value.to(parameter.device, copy=True)
    return spread_as(parameter, copied) if value.shape == parameter.shape and not is_shard(value) else copied
