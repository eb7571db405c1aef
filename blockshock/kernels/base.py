"""What a kernel is: it packs one piece of W once, and the packing multiplies.

A kernel is one file in this folder with one class registered in KERNELS; nothing else needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.formats import Format
from blockshock.kernels.packed import Packed
from blockshock.matrices import Mask, Piece
from blockshock.registry import Registry

Agree = Callable[[list[float]], list[float]]
"""Turns this rank's measured seconds into those that all ranks decide by."""


class Kernel:
    """A way to multiply by a piece of W.

    Attributes:
        device_types, dtypes: where it can run at all, and what it multiplies.
        sparse: holds the piece compressed; False for the ablation.
        contender: timed by default and a candidate of ``auto``; False for kernels that exist to be right.
        unit: as of its packings.
        training_mask: what it is trained with unless another mask is asked for: a transposable one, where the
            backward product needs that.
        most_tokens: that it multiplies by one reading of W; it is not timed, nor chosen, for more. None: any number.
        fuses: its packings can sum over the ranks themselves, and have ``summed``.
        formats: names of those in which it multiplies, beside the dtypes: it has ``pack_quantised``.
        plain: it multiplies in the dtypes themselves; False where it has ``pack_quantised`` alone.
        pruner, training_pruner: of a W that it is to multiply by alone, frozen or trained, unless another is asked for.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    sparse: ClassVar[bool] = True
    contender: ClassVar[bool] = True
    unit: ClassVar[str] = Packed.unit
    most_tokens: ClassVar[int | None] = None
    fuses: ClassVar[bool] = False
    formats: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[bool] = True
    training_mask: ClassVar[str] = "tile"
    pruner: ClassVar[str] = "magnitude"
    training_pruner: ClassVar[str] = "tile_magnitude"

    @property
    def name(self) -> str:
        """By which it is registered."""
        return KERNELS.name_of(type(self))

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why this kernel cannot run on that device and dtype."""
        return not_among(self.device_types, self.dtypes, device, dtype)

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        """None, or one sentence that says why this kernel cannot take that shape (and that mask, when given)."""
        return None

    def takes(self, tokens: int) -> bool:
        """Whether one reading of W multiplies so many."""
        return self.most_tokens is None or tokens <= self.most_tokens

    def without_format(self) -> str | None:
        """None, or one sentence that says why this kernel cannot multiply in a layer's own dtype."""
        return None if self.plain else f"kernel {self.name} multiplies in formats {' and '.join(self.formats)} alone"

    def check(self, piece: Piece, format: Format | None = None) -> None:
        """Raises KernelUnavailable or InputError, with the reason, unless this piece can be packed here.

        Args:
            format: by ``pack_quantised``; without one, by ``pack``.
        """
        if reason := self.unavailable(piece.device, piece.dtype):
            raise KernelUnavailable(f"kernel {self.name}: {reason}")
        if piece.mask is None and self.sparse:
            raise InputError(f"kernel {self.name}: needs a 2:4 mask, and this piece is dense")
        if reason := self.unsuitable(piece.N, piece.K, piece.dtype, piece.mask):
            raise InputError(f"kernel {self.name}: {reason}")
        in_format = self.unsuitable_format(format, piece.N, piece.K, piece.dtype) if format else self.without_format()
        if in_format:
            raise InputError(in_format)

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        """Pack a piece. ``check`` it first: this assumes that it passed.

        Args:
            backward: ``grad_input`` will be asked for, so that what it needs beside the packing is packed too.
        """
        raise NotImplementedError

    def unsuitable_format(self, format: Format, N: int, K: int, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why this kernel cannot multiply a (N, K) piece of a layer in that format."""
        if format.name in self.formats:
            return None
        able = [name for name in KERNELS.names() if format.name in KERNELS.get(name).formats]
        instead = f"pick {' or '.join(able)}" if able else "no kernel does"
        return f"kernel {self.name} does not multiply {format.name}: {instead}"

    def pack_quantised(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> Packed:
        """Pack a piece in one of its formats, for the forward pass alone. ``check`` it first.

        Args:
            shared_N: the scales of the whole rows that the piece is a part of; None where it has whole ones.
        """
        raise NotImplementedError

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        """Bytes that such a packing holds, and those held at most while packing; the most, if the mask is not known."""
        raise NotImplementedError

    def backward_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None) -> int:
        """Bytes held for the backward pass beside the packing; 0 for kernels that contract over N too.

        Args:
            mask: of the piece; at most, if it is not known.
        """
        return 0

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        """Bytes that the packing of a (N, K) piece holds; the most, if its mask is not known."""
        raise NotImplementedError

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        """Bytes held at most while packing, the packing included and one row block left out."""
        return self.weight_bytes(N, K, itemsize)

    def resolve(self, piece: Piece, tokens: int, backward: bool, agree: Agree) -> Kernel:
        """The kernel that will run, forward or both ways; itself, for all but ``auto``."""
        return self.ranked(piece, tokens, backward, agree)[0]

    def ranked(self, piece: Piece, tokens: int, backward: bool, agree: Agree) -> list[Kernel]:
        """Those of which it is the first, by what their products take: all that multiply right."""
        return [self]

    def resolve_format(self, piece: Piece, tokens: int, format: Format, agree: Agree) -> Kernel:
        """The same in a format."""
        return self


def not_among(
    device_types: tuple[str, ...], dtypes: tuple[torch.dtype, ...], device: torch.device, dtype: torch.dtype
) -> str | None:
    """None, or why something that is for these devices and dtypes is not for that one."""
    if device.type not in device_types:
        return f"needs a {' or '.join(device_types)} device, this is {device.type}"
    if dtype not in dtypes:
        return f"multiplies {', '.join(map(str, dtypes))}, not {dtype}"
    return None


def packed_bytes(N: int, K: int, itemsize: int) -> int:
    """Bytes of kept values and two bits of position for each: the format of the sparse tensor cores."""
    return N * K // 2 * itemsize + N * K // 8


KERNELS: Registry[type[Kernel]] = Registry("kernel")


def build_kernel(spec: str) -> Kernel:
    """The kernel that a spec such as ``gathered`` or ``cusparselt:search=no`` names."""
    kind, parameters = KERNELS.resolve(spec)
    return kind(**parameters)
