"""Data parallelism around a model that holds Block-Shock layers: over replicas of a half, never over the two halves.

torch's wrappers average gradients and copy rank 0's values. Over the ranks that the halves lie on, both would mix one
half with the other, so that is refused when the wrapper is built. torch calls a hook whenever a module becomes a part
of another one: that is how a wrapper is noticed before it does anything.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from blockshock.errors import InputError
from blockshock.methods import BlockShock
from blockshock.training import SparseStorage, check_replicas, part_of


def _when_registered(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    # No attribute of the wrapper is asked for by chance: one that is half built may raise anything.
    if module is not None and isinstance(wrapper, DistributedDataParallel) and name == "module":
        ignored = wrapper.parameters_to_ignore
        layers = [layer for prefix, layer in _layers(module) if not ignored.issuperset(_tensors(prefix, layer))]
        for half in (half for layer in layers for half in layer.storages()):
            assert isinstance(half, SparseStorage)
            check_replicas("DistributedDataParallel", wrapper.process_group, part_of(half.parameter), half.mask)
        if layers:
            _refresh_before_forward(wrapper, layers)
    elif module is not None and type(wrapper).__name__ == "FullyShardedDataParallel" and name == "_fsdp_wrapped_module":
        ignored = vars(wrapper).get("_ignored_params", set())
        if any(not ignored.issuperset(layer.parameters()) for _, layer in _layers(module)):
            raise InputError(
                "FullyShardedDataParallel flattens parameters, and a BlockShockLinear multiplies by memory of its own: "
                "name the layer in ignored_modules=, or take fully_shard"
            )


def _layers(module: nn.Module) -> list[tuple[str, BlockShock]]:
    """Those that are trained, with their names."""
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BlockShock)]
    return [(name, layer) for name, layer in found if list(layer.split_parameters())]


def _tensors(prefix: str, layer: BlockShock) -> set[str]:
    """The names of all that a wrapper would touch of a layer: what multiplies is no buffer of the module tree."""
    return {name for name, _ in layer.named_parameters(prefix)}


def _refresh_before_forward(wrapper: nn.Module, layers: list[BlockShock]) -> None:
    """The wrapper's constructor copies rank 0's values into the parameters: they are packed again, once."""

    def refresh(module: nn.Module, args: tuple[Any, ...]) -> None:
        handle.remove()
        for layer in layers:
            layer.repack()

    handle = wrapper.register_forward_pre_hook(refresh)


@cache
def watch_wrappers() -> None:
    """From now on each wrapper is looked at when it is built."""
    register_module_module_registration_hook(_when_registered)
