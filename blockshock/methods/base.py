"""What a method is: one row of the result table, a linear layer spread over a group of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from blockshock.collectives import Group
from blockshock.errors import InputError
from blockshock.masks import Mask
from blockshock.registry import Registry
from blockshock.stages import copied, stage
from blockshock.weights import WeightSource


@dataclass(frozen=True)
class Layer:
    """The layer a method is to compute.

    Attributes:
        source: W and the bias.
        mask: of the first half, for methods that split W; None for the others.
        kernel: spec of the kernel, for methods that choose one.
        tokens: rows of X that the layer will meet, for kernels that are chosen by measuring.
        backward: the layer will be differentiated, so that what backward needs is packed too.
    """

    source: WeightSource
    mask: Mask | None = None
    kernel: str = "auto"
    tokens: int = 64
    backward: bool = False


@dataclass(frozen=True)
class Shape:
    """N, K and bytes an element of a layer, the number of ranks, and whether backward runs: for memory estimates."""

    N: int
    K: int
    itemsize: int
    ranks: int
    backward: bool = False


@dataclass(frozen=True)
class WeightEstimate:
    """Bytes that one rank holds of the weights in steady state, and at most while building."""

    steady: int
    building: int


class Method(nn.Module):
    """A linear layer y = x Wᵀ + bias whose replicated input and output are (B, K) and (B, N) on every rank.

    A subclass says what it stores, how it multiplies (``partial``) and how the ranks agree (``enter``, ``combine``).

    Attributes:
        picks: which of "mask" and "kernel" the user picks for this method.
        roundings: how often an element of y is rounded to the dtype on its way; of partial sums, their number.
    """

    picks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__()
        self.N, self.K, self.dtype, self.device = (
            layer.source.N,
            layer.source.K,
            layer.source.dtype,
            layer.source.device,
        )
        self.group = group

    @classmethod
    def check(cls, shape: Shape) -> None:
        """Raises InputError if this method cannot lay out such a layer over so many ranks."""

    @classmethod
    def estimate(cls, shape: Shape, kernel: str) -> WeightEstimate:
        """Weight bytes a rank holds, by arithmetic."""
        raise NotImplementedError

    @property
    def roundings(self) -> int:
        return 1

    @property
    def grad_roundings(self) -> int:
        """The same of an element of grad_X."""
        return 1

    @property
    def algorithm(self) -> str:
        """The kernel and algorithm that ran, for the record."""
        return "dense"

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        self._check_input(x_BK)
        part = self.partial(self.enter(x_BK))
        if not part.is_contiguous():
            with stage("layout"):
                part = copied(part.contiguous())
        return self.combine(part)

    def enter(self, x_BK: torch.Tensor) -> torch.Tensor:
        """What of the replicated input this rank multiplies; in backward, grad_X whole again on every rank."""
        return x_BK

    def partial(self, x_BK: torch.Tensor) -> torch.Tensor:
        """What this rank computes by itself."""
        raise NotImplementedError

    def combine(self, part: torch.Tensor) -> torch.Tensor:
        """y (B, N) on every rank, from every rank's part: the stage ``reduce``."""
        return part

    def weight_bytes(self) -> int:
        """Bytes of the storages behind all parameters and buffers, each storage once."""
        tensors = [*self.parameters(), *self.buffers()]
        local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())

    def _check_input(self, x_BK: torch.Tensor) -> None:
        if x_BK.ndim != 2 or x_BK.shape[1] != self.K or x_BK.shape[0] == 0:
            raise InputError(f"x must be (B, {self.K}) with B > 0, got {tuple(x_BK.shape)}")
        if x_BK.dtype != self.dtype or x_BK.device.type != self.device.type:
            raise InputError(f"x must be {self.dtype} on {self.device.type}, got {x_BK.dtype} on {x_BK.device.type}")


METHODS: Registry[type[Method]] = Registry("method")
