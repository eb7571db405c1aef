"""BlockShockParallel: Block-Shock layers in a plan of torch's ``parallelize_module``, beside its own styles."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from blockshock.errors import InputError
from blockshock.nn.linear import BlockShockLinear
from blockshock.nn.replaceable import bind_hooks, hooks_of


class BlockShockParallel(ParallelStyle):
    """Makes an ``nn.Linear`` a ``BlockShockLinear``, in place, whose products take and give replicated tensors.

    Args:
        input_layouts: of an input that is a plain tensor, as in torch's styles: ``Shard(1)`` for this rank's part of
            the sequence. An input that is a DTensor says so itself. Either is replicated first.
        output_layouts: of the output: replicated, or ``Shard(1)`` for ``SequenceParallel`` to go on with.
        use_local_output: give a plain tensor, not a DTensor.
        options: the keyword arguments of ``BlockShockLinear``.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self._input, self._output = input_layouts or Replicate(), output_layouts or Replicate()
        self._use_local_output, self._options = use_local_output, options
        for name, layout in (("input_layouts", self._input), ("output_layouts", self._output)):
            if not isinstance(layout, Placement):
                raise InputError(f"{name} takes a placement such as Replicate() or Shard(1), got {layout!r}")
            if layout.is_partial():
                raise InputError(f"{name} must be replicated or sharded, got {layout}: its ranks' parts are no sums")

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, nn.Linear):
            raise InputError(f"BlockShockParallel is for nn.Linear, got {type(module).__name__}")
        layer = BlockShockLinear(module, device_mesh, **self._options)
        # In place, for parallelize_module leaves the parent's reference as it is: handles remove its hooks as before.
        attributes = vars(layer) | hooks_of(module)
        vars(module).clear()
        vars(module).update(attributes)
        module.__class__ = BlockShockLinear  # type: ignore[assignment]
        bind_hooks(module)
        entry, end = _Layouts(device_mesh, self._input), _Layouts(device_mesh, self._output)
        module.register_forward_pre_hook(entry.replicated, with_kwargs=True)
        if self._output != Replicate() or not self._use_local_output:
            module.register_forward_hook(end.local if self._use_local_output else end.distributed)
        return module


class _Layouts:
    """Between replicated plain tensors and a placement."""

    def __init__(self, mesh: DeviceMesh, placement: Placement) -> None:
        self._mesh, self._placements = mesh, [placement]

    def __deepcopy__(self, memo: object) -> _Layouts:
        return self  # a value, whose mesh is this run's

    def replicated(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(self._whole(arg) for arg in args), {name: self._whole(arg) for name, arg in kwargs.items()}

    def _whole(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if not isinstance(x, DTensor):
            if self._placements == [Replicate()]:
                return x
            x = DTensor.from_local(x, self._mesh, self._placements, run_check=False)
        everywhere = [Replicate()] * x.device_mesh.ndim
        # Every rank makes the whole gradient.
        return x.redistribute(placements=everywhere).to_local(grad_placements=everywhere)

    def distributed(self, module: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
        # The product needs the whole gradient on every rank, whatever becomes of the output.
        whole = DTensor.from_local(y, self._mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=self._placements)

    def local(self, module: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
        placed: Any = self.distributed(module, args, y)
        return placed.to_local()
