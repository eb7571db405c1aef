"""Data parallelism around a model that holds layers of ours: over replicas of a part, never over the parts of one W.

torch's wrappers average gradients and copy rank 0's values. Over the ranks that halves or shards lie on, both would mix
one with the other, so that is refused when the wrapper is built. torch calls a hook whenever a module becomes a part
of another one: that is how a wrapper is noticed before it does anything.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from blockshock.errors import InputError
from blockshock.methods import Method
from blockshock.training import Storage, check_replicas, part_of


def _when_registered(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    # No attribute of the wrapper is asked for by chance: one that is half built may raise anything.
    if module is not None and isinstance(wrapper, DistributedDataParallel) and name == "module":
        ignored = wrapper.parameters_to_ignore
        layers = [layer for prefix, layer in _layers(module) if not ignored.issuperset(_tensors(prefix, layer))]
        for storage in (storage for layer in layers for storage in layer.storages()):
            parts = part_of(storage.parameter)
            check_replicas("DistributedDataParallel", wrapper.process_group, parts, storage.mask)
        if layers:
            _refresh_before_forward(wrapper)
            wrapper.register_load_state_dict_pre_hook(_check_prefix)
    elif module is not None and type(wrapper).__name__ == "FullyShardedDataParallel" and name == "_fsdp_wrapped_module":
        ignored = vars(wrapper).get("_ignored_params", set())
        if any(not ignored.issuperset(layer.parameters()) for _, layer in _layers(module)):
            raise InputError(
                "FullyShardedDataParallel flattens parameters, and a layer of ours multiplies by memory of its own: "
                "name the layer in ignored_modules=, or take fully_shard"
            )


def _check_prefix(wrapper: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """torch's checkpoints put ``module.`` before names of parameters alone; where not strict, a weight would be lost.

    Raises:
        InputError: the state has a layer's weight by its name in the module that is wrapped.
    """
    for name, _layer in _layers(wrapper.get_submodule("module")):
        weight = ".".join([*name.split(".")[:-1], "weight"])
        if prefix + weight in state and f"{prefix}module.{weight}" not in state:
            raise InputError(
                f"the state has {weight}, and a DistributedDataParallel would have module.{weight}: load it into the "
                "module that is wrapped, as by set_model_state_dict(model.module, …)"
            )


def _layers(module: nn.Module) -> list[tuple[str, Method]]:
    """Those that are trained, with their names."""
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Method)]
    return [(name, layer) for name, layer in found if any(isinstance(module, Storage) for module in layer.modules())]


def _tensors(prefix: str, layer: Method) -> set[str]:
    """The names of all that a wrapper would touch of a layer: what multiplies is no buffer of the module tree."""
    return {name for name, _ in layer.named_parameters(prefix)}


def _refresh_before_forward(wrapper: nn.Module) -> None:
    """The wrapper's constructor copies rank 0's values into the parameters: they are packed again, once.

    Those of the layers that are there by then: a state that was loaded since may have made others, of another mask.
    """

    def refresh(module: nn.Module, args: tuple[Any, ...]) -> None:
        handle.remove()
        for _, layer in _layers(module):
            layer.repack()

    handle = wrapper.register_forward_pre_hook(refresh)


@cache
def watch_wrappers() -> None:
    """From now on each wrapper is looked at when it is built."""
    register_module_module_registration_hook(_when_registered)
