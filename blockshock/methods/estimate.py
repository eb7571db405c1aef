"""What the memory of a layer's weights is estimated by, and what the estimate says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blockshock.kernels import Format, Kernel, build_format
from blockshock.matrices import Mask, WeightSource
from blockshock.training import Training, storage_of


@dataclass(frozen=True)
class Shape:
    """What a memory estimate goes by: N, K, bytes an element, ranks, and which of backward and training run.

    Attributes:
        training: as of ``Layer``.
        parameters: of the method, where its spec gives some.
        mask: that was picked; None where there is none, or where it is not known: then the most is estimated.
        picks: specs by axis, as of ``Layer``.
    """

    N: int
    K: int
    itemsize: int
    ranks: int
    backward: bool = False
    training: Training | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    mask: Mask | None = None
    picks: Mapping[str, str] = field(default_factory=dict)

    @property
    def format(self) -> Format | None:
        """In what the product is made; None for the dtype."""
        return build_format(self.picks.get("format", "plain"))

    @classmethod
    def of(cls, source: WeightSource, ranks: int) -> Shape:
        """Of such weights, frozen."""
        return cls(source.N, source.K, source.dtype.itemsize, ranks)


@dataclass(frozen=True)
class WeightEstimate:
    """Bytes that one rank holds of the weights in steady state, and at most while building.

    Attributes:
        trained: elements of the parameters, in training: as many as their gradients have.
    """

    steady: int
    building: int
    trained: int = 0

    @classmethod
    def dense(cls, elements: int, shape: Shape) -> WeightEstimate:
        """Of so many elements of a dense weight."""
        frozen = elements * shape.itemsize
        if shape.training is None:
            return cls(frozen, frozen)
        trained = frozen + elements * shape.training.bytes_beside(shape.itemsize)
        return cls(trained, trained, elements)

    @classmethod
    def piece(cls, kernel: Kernel, storage: str, N: int, K: int, shape: Shape, mask: Mask | None) -> WeightEstimate:
        """Of a piece (N, K) in a kernel's own format; the most, if its mask is not known.

        Args:
            storage: spec, where it is trained.
        """
        size = N, K, shape.itemsize
        if shape.format is not None:
            return cls(*kernel.quantised_bytes(N, K, shape.format, mask))
        backward = kernel.backward_bytes(*size, mask) if shape.backward or shape.training else 0
        held, building = kernel.weight_bytes(*size, mask) + backward, kernel.build_bytes(*size) + backward
        if shape.training is None:
            return cls(held, building)
        kind, _ = storage_of(storage)
        more = kind.extra_bytes(*size, shape.training, mask)
        return cls(held + more, building + more, kind.elements(N * K))
