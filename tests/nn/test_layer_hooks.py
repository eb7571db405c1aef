"""Hooks of an nn.Linear that is replaced come along, and a layer calls its own as any module of torch does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from blockshock import BlockShockLinear, BlockShockParallel
from blockshock.ranks import Ranks


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def _x() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def _hooked(linear: nn.Linear, called: list[str]) -> list[Any]:
    def says(name: str) -> Callable[..., None]:
        return lambda module, *args, **kwargs: called.append(f"{name} {type(module).__name__}")

    return [
        linear.register_forward_pre_hook(says("before"), with_kwargs=True),
        linear.register_forward_hook(says("after")),
        linear.register_full_backward_hook(says("backward")),
        linear.register_state_dict_pre_hook(says("saving")),
        linear.register_load_state_dict_pre_hook(says("loading")),
        linear.register_load_state_dict_post_hook(says("loaded")),
    ]


HOOKS = ["before", "after", "backward", "saving", "loading", "loaded"]


def _all_hooks(module: nn.Module) -> None:
    module(_x().requires_grad_()).sum().backward()
    module.load_state_dict(module.state_dict())


def _hooks_of_a_replaced_linear(in_a_plan: bool) -> None:
    called: list[str] = []
    model = nn.Sequential(_linear())
    handles = _hooked(model[0], called)  # type: ignore[arg-type]
    _all_hooks(model)
    assert called == [f"{name} Linear" for name in HOOKS]
    if in_a_plan:
        parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), {"0": BlockShockParallel()})
    else:
        model[0] = BlockShockLinear(model[0])  # type: ignore[arg-type]
    gc.collect()
    called.clear()
    _all_hooks(model)
    assert called == [f"{name} BlockShockLinear" for name in HOOKS]
    for handle in handles:
        handle.remove()  # of the module that it was got from: in a plan the layer is that module
    called.clear()
    _all_hooks(model)
    assert called == ([] if in_a_plan else [f"{name} BlockShockLinear" for name in HOOKS])


def test_hooks_come_along(cpu_ranks: Ranks) -> None:
    _hooks_of_a_replaced_linear(in_a_plan=False)
    cpu_ranks.run(_hooks_of_a_replaced_linear, True)


def test_hooks_of_a_layer_and_of_its_linear_are_their_own() -> None:
    called: list[str] = []
    linear = _linear()
    _hooked(linear, called)
    layer = BlockShockLinear(linear)
    layer.register_forward_hook(lambda module, args, y: y * 0)
    called.clear()
    _all_hooks(linear)
    assert called == [f"{name} Linear" for name in HOOKS]
    assert linear(_x()).count_nonzero()
    linear.register_forward_hook(lambda module, args, y: y + 1)
    assert not layer(_x()).count_nonzero()


def _changing_hook(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    state[f"{prefix}weight"] = state.pop(f"{prefix}old_name") * 2


def test_a_hook_may_change_the_state_before_it_is_loaded() -> None:
    loaded = []
    for layer in (_linear(), BlockShockLinear(_linear())):
        layer.register_load_state_dict_pre_hook(_changing_hook)
        state = layer.state_dict()
        state["old_name"] = state.pop("weight")
        layer.load_state_dict(state)
        loaded.append(layer.state_dict()["weight"])
    assert torch.equal(*loaded)
    layer.load_state_dict({"old_name": loaded[0], "bias": torch.ones(48)}, assign=True)
    assert torch.equal(layer.weight, 2 * loaded[0])
