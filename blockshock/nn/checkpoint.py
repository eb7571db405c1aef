"""The state of an optimizer as if all layers were dense, so that training goes on with any ranks, kernel and storage.

    torch.save({"model": model.state_dict(), "optimizer": optimizer_state(model, optimizer)}, path)

Momenta of a half lie as its parameter does. Here they come together to a tensor of the shape of ``weight``, as a
dense layer's optimizer has it, and are taken apart again when loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.nn.linear import BlockShockLinear
from blockshock.training import check_elementwise, gathered, is_shard, reshard, spread_as

State = dict[str, Any]


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
    for name, held, layer in _parameters(model, optimizer):
        states = [optimizer.state[parameter] for parameter in held if parameter in optimizer.state]
        if states and len(states) < len(held):
            raise InputError(f"the optimizer has a state of one half of {name!r} alone: give it all parameters()")
        shapes[name] = _shape(held, layer)
        if states:
            keys = states[0]
            state[name] = {key: _dense(f"{name}'s {key}", [one[key] for one in states], held, layer) for key in keys}
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
    loaded: dict[torch.Tensor, State] = {}
    for name, held, layer in _parameters(model, optimizer):
        loaded |= _loaded(name, held, layer, saved)
    optimizer.state.update(loaded)
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(_options(options))


def _loaded(
    name: str, held: list[nn.Parameter], layer: BlockShockLinear | None, saved: State
) -> dict[torch.Tensor, State]:
    """The states of what holds one dense parameter; none of one that had none when the state was saved."""
    states, shapes = saved["state"], saved.get("shapes", {})
    if name not in states and name not in shapes and states:
        raise InputError(f"the optimizer's state has no {name!r}; it has {', '.join(shapes or states)}")
    if name in shapes:
        _check_shape(name, shapes[name], held, layer)
    found: dict[torch.Tensor, State] = {parameter: {} for parameter in held if name in states}
    for key, value in states.get(name, {}).items():
        # A half's states are of the dense shape; those of other parameters as their optimizer has them.
        if isinstance(value, torch.Tensor) and value.ndim and (layer is not None or name not in shapes):
            _check_shape(name, value.shape, held, layer)
        for parameter, one in zip(held, _taken_apart(value, held, layer), strict=True):
            found[parameter][key] = one
    return found


def _check_shape(name: str, found: Iterable[int], held: list[nn.Parameter], layer: BlockShockLinear | None) -> None:
    if tuple(found) != _shape(held, layer):
        raise InputError(f"the optimizer's state of {name!r} has shape {tuple(found)}, not {_shape(held, layer)}")


def _options(group: State) -> State:
    """Of a group of parameters, but for what names them: each layout has names of its own."""
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _shape(held: list[nn.Parameter], layer: BlockShockLinear | None) -> tuple[int, ...]:
    """Of the dense parameter."""
    return tuple(held[0].shape) if layer is None else (layer.out_features, layer.in_features)


def _parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, list[nn.Parameter], BlockShockLinear | None]]:
    """Of each dense parameter that the optimizer holds its name and what holds it here: itself, or a layer's halves."""
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    seen: set[int] = set()
    for prefix, layer in model.named_modules():
        if isinstance(layer, BlockShockLinear):
            halves = [storage.parameter for storage in layer.layer.storages()]
            dot = prefix and prefix + "."
            if any(id(half) in ours for half in halves):
                yield f"{dot}weight", halves, layer
            if layer.bias is not None and id(layer.bias) in ours:
                yield f"{dot}bias", [layer.bias], None
            seen |= {id(parameter) for parameter in layer.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in ours and id(parameter) not in seen:
            yield name, [parameter], None


def _dense(what: str, values: list[Any], held: list[nn.Parameter], layer: BlockShockLinear | None) -> Any:
    first = values[0]
    if not isinstance(first, torch.Tensor):
        return deepcopy(first)
    if layer is None or first.ndim == 0:
        return gathered(first, what).clone()
    if first.shape != held[0].shape:
        raise InputError(
            f"{what} is a tensor {tuple(first.shape)}, neither one number nor of the shape {tuple(held[0].shape)} of "
            "the half: it could not be loaded into another layout"
        )
    return layer.layer.whole(values, what)


def _taken_apart(value: Any, held: list[nn.Parameter], layer: BlockShockLinear | None) -> list[Any]:
    if not isinstance(value, torch.Tensor):
        return [deepcopy(value) for _ in held]
    if layer is None or value.ndim == 0:
        # A number, such as Adam's step, lies where the optimizer keeps it: on a CPU, or where it is told to.
        return [value.clone() if value.ndim == 0 else _placed(value, parameter) for parameter in held]
    parts = layer.layer.held(value.to(held[0].device))
    return [spread_as(parameter, part) for parameter, part in zip(held, parts, strict=True)]


def _placed(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A copy of an optimizer's state, of the parameter's shape or another one, where the parameter lies."""
    copied = value.to(parameter.device, copy=True)
    return spread_as(parameter, copied) if value.shape == parameter.shape and not is_shard(value) else copied
