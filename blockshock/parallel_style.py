"""BlockShockParallel: Block-Shock layers in a plan of torch's ``parallelize_module``, beside its own styles."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ParallelStyle

from blockshock.errors import InputError
from blockshock.linear import BlockShockLinear


class BlockShockParallel(ParallelStyle):
    """Makes an ``nn.Linear`` a ``BlockShockLinear``, in place, with replicated input and output.

    An input that is a DTensor is replicated first; outputs are plain tensors.

    Args:
        options: the keyword arguments of ``BlockShockLinear``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, nn.Linear):
            raise InputError(f"BlockShockParallel is for nn.Linear, got {type(module).__name__}")
        layer = BlockShockLinear(module, device_mesh, **self._options)
        hooks = {name: held for name, held in vars(module).items() if "hooks" in name}
        # In place, for parallelize_module leaves the parent's reference as it is.
        vars(module).clear()
        vars(module).update(vars(layer) | hooks)
        module.__class__ = BlockShockLinear  # type: ignore[assignment]
        module.register_forward_pre_hook(_replicated_input)
        return module


def _replicated_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_local(arg) if isinstance(arg, DTensor) else arg for arg in args)


def _local(x: DTensor) -> torch.Tensor:
    everywhere = [Replicate()] * x.device_mesh.ndim
    return x.redistribute(placements=everywhere).to_local(grad_placements=everywhere)
