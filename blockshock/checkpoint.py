"""The state of an optimizer as if all layers were dense, so that training goes on with any ranks, kernel and storage.

    torch.save({"model": model.state_dict(), "optimizer": optimizer_state(model, optimizer)}, path)

Momenta of a half lie as its parameter does. Here they come together to a tensor of the shape of ``weight``, as a
dense layer's optimizer has it, and are taken apart again when loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.linear import BlockShockLinear

State = dict[str, Any]


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Plain tensors by the names of dense parameters, and the options of the groups; all ranks call it together.

    Returns:
        ``{"state": {"0.weight": {"exp_avg": (N, K), …}, …}, "groups": [{"lr": …}, …]}``; loads with
        ``weights_only=True``.
    """
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    state = {}
    for name, held, layer in _parameters(model):
        if held[0] in optimizer.state:
            states = [optimizer.state[parameter] for parameter in held]
            state[name] = {key: _dense(key, [one[key] for one in states], held, layer) for key in states[0]}
    return {"state": state, "groups": groups}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Load what ``optimizer_state`` returned, into an optimizer of the same kind and groups.

    Raises:
        InputError: a parameter of the model is not in the state, or of another shape, or the groups differ in number.
    """
    if not {"state", "groups"} <= saved.keys() or not isinstance(saved["state"], dict):
        raise InputError("this is not what optimizer_state returned: it has no 'state' by names and no 'groups'")
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise InputError(f"the state has {len(saved['groups'])} groups, the optimizer {len(optimizer.param_groups)}")
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, held, layer in _parameters(model):
        if id(held[0]) not in ours or not saved["state"]:
            continue
        if name not in saved["state"]:
            raise InputError(f"the optimizer's state has no {name!r}; it has {', '.join(saved['state'])}")
        for parameter in held:
            optimizer.state[parameter] = {}
        for key, value in saved["state"][name].items():
            for parameter, one in zip(held, _taken_apart(name, value, held, layer), strict=True):
                optimizer.state[parameter][key] = one
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(options)


def _parameters(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], BlockShockLinear | None]]:
    """Of each dense parameter its name and what holds it here: itself, or halves of a layer."""
    seen: set[int] = set()
    for prefix, layer in model.named_modules():
        if isinstance(layer, BlockShockLinear):
            halves = [storage.parameter for storage in layer.layer.storages()]
            dot = prefix and prefix + "."
            yield f"{dot}weight", halves, layer
            seen |= {id(parameter) for parameter in halves}
            if layer.bias is not None:
                yield f"{dot}bias", [layer.bias], None
                seen.add(id(layer.bias))
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            yield name, [parameter], None


def _dense(key: str, values: list[Any], held: list[nn.Parameter], layer: BlockShockLinear | None) -> Any:
    first = values[0]
    if not isinstance(first, torch.Tensor) or first.shape != held[0].shape or layer is None:
        return first.clone() if isinstance(first, torch.Tensor) else first
    return layer.layer.whole(values, f"an optimizer's {key}")


def _taken_apart(name: str, value: Any, held: list[nn.Parameter], layer: BlockShockLinear | None) -> list[Any]:
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return [value.clone() if isinstance(value, torch.Tensor) else value for _ in held]
    wanted = held[0].shape if layer is None else (layer.out_features, layer.in_features)
    if tuple(value.shape) != tuple(wanted):
        raise InputError(f"the optimizer's state of {name!r} has shape {tuple(value.shape)}, not {tuple(wanted)}")
    value = value.to(held[0].device)
    return [value.clone()] if layer is None else layer.layer.held(value)
