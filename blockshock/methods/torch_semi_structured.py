"""What a user of torch has for a pruned layer: ``to_sparse_semi_structured(W′)`` through ``F.linear``.

So that a reader sees what the library costs and what the idea costs. Where torch's product gives its output transposed,
eager code copies it, and ``torch.compile`` makes that a part of what it compiles (``compiled=yes``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from blockshock.kernels import Kernel, Packed, build_kernel, packed_bytes
from blockshock.machine import Group, held_bytes, torch_internals
from blockshock.matrices import WeightSource, in_own_order
from blockshock.measure import Operand
from blockshock.methods.base import METHODS, Method
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role, Span
from blockshock.methods.layer import Layer
from blockshock.methods.permuted import Order, order_bytes
from blockshock.pruning import PrunedWeights, pruning_bytes
from blockshock.stages import stage


class PackedByTorch(Packed):
    """A 2:4 matrix as a tensor of torch's own kind."""

    unit = "2:4"

    def __init__(self, w_NK: torch.Tensor, bias: torch.Tensor | None, compiled: bool) -> None:
        super().__init__()
        self._kept, self._sparse = w_NK.numel() // 2, torch_internals.semi_structured(w_NK)
        self.algorithm = type(self._sparse).__name__
        self.hold_bias(bias)
        self._linear = _compiled(type(self._sparse)) if compiled else F.linear

    def tensors(self) -> list[torch.Tensor]:
        parts = [getattr(self._sparse, name) for name in ("packed", "meta", "packed_t", "meta_t")]
        return [part for part in [*parts, self.bias] if part is not None]

    @property
    def operand(self) -> Operand:
        return Operand(self._kept, held_bytes([part for part in self.tensors() if part is not self.bias]), self.unit)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            return self._linear(x_BK, self._sparse, self.bias)


def _compiled(kind: type[torch.Tensor]) -> Callable[..., torch.Tensor]:
    torch.compiler.allow_in_graph(kind)  # as torch does it when it first makes one
    return torch.compile(_rows, dynamic=False)


def _rows(x_BK: torch.Tensor, sparse: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product as all methods give it, rows one after the other."""
    return F.linear(x_BK, sparse, bias).contiguous()


@METHODS.register("torch_semi_structured")
class TorchSemiStructured(Method):
    """W′ as torch's own 2:4 tensor, on one device, forward only. Stores 9/16 of dense bytes.

    Args:
        compiled: run by ``torch.compile``.
    """

    promise, span, role = Promise.OWN_WEIGHTS, Span.ONE, Role.RIVAL
    axes: ClassVar[tuple[str, ...]] = ("pruner",)
    instead = "torch's own to_sparse_semi_structured"

    def __init__(self, layer: Layer, group: Group, compiled: bool = False) -> None:
        super().__init__(layer, group)
        w_NK = layer.pruned(self.rows, self.columns).gather(slice(None))
        self._packed = PackedByTorch(w_NK, layer.source.bias, compiled)
        self._order = None if layer.permutation is None else Order.of(layer.permutation, self.columns)

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        return in_own_order(layer.pruned(*cls.part(Shape.of(layer.source, ranks), 0)), layer.permutation)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype, differentiated: bool) -> str | None:
        if differentiated:
            return "torch packs W′ for the forward pass alone"
        return _kernel().unavailable(device, dtype)

    @classmethod
    def unsuitable(cls, layer: Layer, **parameters: Any) -> str | None:
        source = layer.source
        return _kernel().unsuitable(source.N, source.K, source.dtype) or super().unsuitable(layer, **parameters)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        size = shape.N, shape.K, shape.itemsize
        held = packed_bytes(*size)
        packing = held + shape.N * shape.K * shape.itemsize + PrunedWeights.held_bytes(*size)
        pruning = pruning_bytes(shape.picks.get("pruner", "magnitude"), shape.N, shape.K, shape.K, shape.itemsize)
        order, searching = order_bytes(shape)
        return WeightEstimate(held + order, max(packing, pruning, searching) + order)

    @property
    def algorithm(self) -> str:
        return self._packed.algorithm

    def packings(self) -> list[Packed]:
        return [self._packed]

    def tensors(self) -> list[torch.Tensor]:
        return [*self._packed.tensors(), *([] if self._order is None else self._order.tensors())]

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self._packed(x_BK if self._order is None else self._order.take(x_BK))


def _kernel() -> Kernel:
    """Ours over the library that torch's tensor is made for."""
    return build_kernel("cusparselt")
