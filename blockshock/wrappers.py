"""Data parallelism around a model that holds Block-Shock layers: over replicas of a half, never over the two halves.

torch's wrappers average gradients and copy rank 0's values. Over the ranks that the halves lie on, both would mix one
half with the other, so that is refused when the wrapper is built. torch calls a hook whenever a module becomes a part
of another one: that is how a wrapper is noticed before it does anything.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from blockshock.collectives import Group, global_ranks
from blockshock.errors import InputError
from blockshock.mask_state import mask_tensor
from blockshock.meeting import meet
from blockshock.methods.superposition import BlockShock


def _when_registered(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    if module is None or "process_group" not in vars(wrapper):  # hasattr asks modules that are not yet made
        return
    if isinstance(wrapper, DistributedDataParallel):
        ignored = wrapper.parameters_to_ignore
        layers = [layer for prefix, layer in _layers(module) if not ignored.issuperset(_tensors(prefix, layer))]
        _check_replicas("DistributedDataParallel", wrapper.process_group, layers)
        if layers:
            _refresh_before_forward(wrapper, layers)
    elif type(wrapper).__name__ == "FullyShardedDataParallel":
        ignored = getattr(wrapper, "_ignored_params", set())
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
    """The names of all that a wrapper would touch of a layer."""
    dot = prefix and prefix + "."
    return {dot + name for named in (layer.named_parameters(), layer.named_buffers()) for name, _ in named}


def _check_replicas(wrapper: str, group: Group, layers: list[BlockShock]) -> None:
    """Raises InputError where the group holds two parts of one layer, RanksApart where its ranks hold other parts."""
    for number, layer in enumerate(layers):
        halves = layer.group
        both = set(global_ranks(halves)) & set(global_ranks(group))
        if halves.size() > 1 and len(both) > 1:
            raise InputError(
                f"{wrapper} over ranks {sorted(both)} would mix the halves of a BlockShockLinear that lie on them: "
                "give it the ranks that hold the same half, as process_group= the other dimension of a DeviceMesh, or "
                "wrap the other modules alone"
            )
        mask = hashlib.sha256(mask_tensor(layer.mask).numpy().tobytes()).hexdigest()[:12]
        meet(group, f"{wrapper} around part {halves.rank()} of layer {number}, of mask {mask}")


def _refresh_before_forward(wrapper: nn.Module, layers: list[BlockShock]) -> None:
    """The wrapper's constructor copies rank 0's values into the parameters: they are packed again, once."""

    def refresh(module: nn.Module, args: tuple[Any, ...]) -> None:
        handle.remove()
        for layer in layers:
            for half in layer.storages():
                half.refresh()

    handle = wrapper.register_forward_pre_hook(refresh)


def watch_wrappers() -> None:
    """From now on each wrapper is looked at when it is built."""
    register_module_module_registration_hook(_when_registered)
