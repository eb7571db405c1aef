"""Of which dtype the parameters are that stand for weights while these are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Training:
    """How weights are to be trained.

    Attributes:
        dtype: of the parameters, their gradients and the optimizer's state; None for float32, or for float64 weights
            their own.
    """

    dtype: torch.dtype | None = None

    def parameter_dtype(self, compute: torch.dtype) -> torch.dtype:
        return self.dtype or torch.promote_types(compute, torch.float32)

    def parameter_bytes(self, itemsize: int) -> int:
        """Bytes of an element of the parameters, for products of elements of ``itemsize`` bytes."""
        return self.dtype.itemsize if self.dtype else max(itemsize, 4)

    def bytes_beside(self, itemsize: int) -> int:
        """The same, of parameters that are the packing's own memory where they are of its size."""
        parameter = self.parameter_bytes(itemsize)
        return 0 if parameter == itemsize else parameter
