"""What the memory of a layer's weights is estimated by, and what the estimate says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blockshock.matrices import Mask
from blockshock.training import Training


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
