"""What methods share that multiply by pieces of W in a kernel's own format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakMethod

import torch

from blockshock.kernels import Kernel, Packed, build_kernel
from blockshock.machine import slowest_of_ranks
from blockshock.matrices import Mask, Piece
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.in_formats import InFormats
from blockshock.methods.joined import MOST_JOINED, Joined
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight
from blockshock.training import CompressedStorage, storage_of


class PieceMethod(InFormats):
    """A method that picks a kernel for its pieces, and in training how they are stored.

    Attributes:
        otherwise: what is taken where it is not picked.
        joins: whether it multiplies by ``joined`` where there is one.
    """

    otherwise: ClassVar[dict[str, str]] = {"kernel": "auto", "storage": "masked"}
    joins: ClassVar[bool] = False
    _kernel: Kernel | None = None
    _kernel_name: str

    @classmethod
    def _spec(cls, axis: str, picks: Mapping[str, Any]) -> str:
        """What was picked of an axis, or what this method takes otherwise."""
        return picks.get(axis, cls.otherwise[axis])

    def _kernel_for(self, layer: Layer, pieces: list[Piece]) -> Kernel:
        """The kernel that will run, which ranks agree on: pieces are alike, what is fastest for one is so for all.

        Raises:
            KernelUnavailable, InputError: it cannot take them.
        """
        picked = self._kernel or build_kernel(self._spec("kernel", layer.picks))
        if layer.format is None:
            kernel = picked.resolve(pieces[0], layer.tokens, layer.both_ways, self._slowest)
        else:
            kernel = picked.resolve_format(pieces[0], layer.tokens, layer.format, self._slowest)
        for piece in pieces:
            kernel.check(piece, layer.format)
        self._kernel_name = kernel.name
        return kernel

    def join(self) -> None:
        parts = [part for part in self.weights() if isinstance(part, CompressedStorage)]
        if self.joins and self.ranks == 1 and len(parts) == len(self.weights()) and self.device.type == "cpu":
            small = self.N * self.K <= MOST_JOINED
            self.joined = Joined(parts, self.permutation, WeakMethod(self._leave)) if small else None

    def _leave(self) -> None:
        self.joined = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"joined": None})
        if state.get("joined") is not None:
            self.join()

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        joined = self.joined
        if joined is None or x_BK.ndim != 2 or torch.compiler.is_compiling():
            return super().forward(x_BK)
        try:
            return joined(x_BK)
        except RuntimeError:
            self._check_input(x_BK)  # which says in words what torch does not take
            raise

    def tensors(self) -> list[torch.Tensor]:
        return [*super().tensors(), *(self.joined.tensors() if self.joined else [])]

    def _slowest(self, seconds: list[float]) -> list[float]:
        return slowest_of_ranks(seconds, self.device, self.group)

    def _packed(
        self,
        layer: Layer,
        piece: Piece,
        kernel: Kernel,
        bias: torch.Tensor | None,
        adds_bias: bool = True,
        shared_N: torch.Tensor | None = None,
    ) -> Weight:
        """A piece in the kernel's own format: frozen, or trained.

        Args:
            adds_bias: this rank's product does; otherwise the bias is trained beside it.
            shared_N: as of ``pack_quantised``.
        """
        if layer.format is not None:
            return kernel.pack_quantised(piece, bias if adds_bias else None, layer.format, shared_N)
        packed = kernel.pack(piece, bias if adds_bias else None, layer.both_ways)
        if layer.training is None:
            return packed
        kind, parameters = storage_of(self._spec("storage", layer.picks))
        return kind(piece, packed, layer.training, layer.trained_bias(bias), **parameters)

    @classmethod
    def _estimate(cls, N: int, K: int, shape: Shape, mask: Mask | None) -> WeightEstimate:
        """Of one piece (N, K) under such a mask."""
        kernel, storage = (cls._spec(axis, shape.picks) for axis in ("kernel", "storage"))
        return WeightEstimate.piece(build_kernel(kernel), storage, N, K, shape, mask)

    @property
    def resolved(self) -> dict[str, str]:
        return {"kernel": self._kernel_name} if "kernel" in self.axes else {}

    @property
    def algorithm(self) -> str:
        told = "; ".join(dict.fromkeys(described(self._kernel_name, packed) for packed in self.packings()))
        return f"{told}, joined" if self.joined else told


def described(name: str, packed: Packed) -> str:
    """The kernel, what it chose, and how it goes backward where that is another packing."""
    told = [f"{name} {packed.algorithm}".strip()]
    if packed.backward is not None:
        other = packed.backward.algorithm or f"{name} {packed.backward.packed.algorithm}".strip()
        told.append(f"backward {other}")
    return ", ".join(told)
