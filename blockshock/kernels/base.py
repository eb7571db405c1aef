"""What a kernel is: it packs one piece of W once, and the packing multiplies.

A kernel is one file in this folder with one class registered in KERNELS; nothing else needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.autograd.graph import increment_version

from blockshock.errors import InputError, KernelUnavailable, StalePacking
from blockshock.machine import Peers, held_bytes
from blockshock.matrices import Every, Mask, Piece
from blockshock.measure import Operand
from blockshock.registry import Registry
from blockshock.stages import copied, stage

Agree = Callable[[list[float]], list[float]]
"""Turns this rank's measured seconds into those that all ranks decide by."""


class Backward(Protocol):
    """What a packing that contracts over K alone holds for grad_y @ W.

    Attributes:
        algorithm: what it is, where that is not the packing's own kernel.
    """

    algorithm: str

    @property
    def packed(self) -> Packed:
        """What multiplies."""

    def __call__(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """grad_y @ W: (B, N) → (B, K)."""

    def into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        """The same, written where others read it."""

    def write(self, values_NJ: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
        """Take over new kept values; write them, in the packing's dtype, to ``rows_NJ`` too if that is given."""

    def recompress(self, w_NK: torch.Tensor) -> None:
        """Take over the values of a masked dense matrix."""


class Packed(nn.Module):
    """A piece in a kernel's own format. Holds the weights as buffers and nothing else of size.

    Attributes:
        algorithm: what the kernel chose to run, for the record.
        backward: for kernels that cannot contract over N, what does it for them.
        product_stage: the stage that the product counts as; ``grad_x`` in a packing of Wᵀ.
        writes: how often its values were written since it was packed.
        sorted_by_pattern: ``arrange`` sorts rows by the mask's row pattern; otherwise it leaves them in order.
        unit: whose rate its product can reach: that of ``dense`` products, or of the sparse tensor cores, ``2:4``.
        fuses: it has ``summed``.
    """

    bias: torch.Tensor | None
    backward: Backward | None
    sorted_by_pattern = False
    fuses = False
    unit: ClassVar[str] = "dense"

    def __init__(self) -> None:
        super().__init__()
        self.algorithm, self.product_stage = "", "matmul"
        self.backward, self.writes = None, 0

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds."""
        return [*self.buffers()]  # as torch 2.11 traces it

    def hold_bias(self, bias: torch.Tensor | None) -> None:
        """Keep a bias (N,), or None."""
        self.register_buffer("bias", None if bias is None else self.arrange(bias).clone(), persistent=False)

    def arrange(self, rows_NJ: torch.Tensor) -> torch.Tensor:
        """Rows of W, or elements of the bias, in the order in which the packing has them."""
        return rows_NJ

    def disarrange(self, arranged_NJ: torch.Tensor) -> torch.Tensor:
        """The inverse of ``arrange``."""
        return arranged_NJ

    @property
    def values(self) -> torch.Tensor:
        """The kept values (N, K/2) where the packing holds them: writing them changes the forward product."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the piece."""
        N, J = self.values.shape
        return N, 2 * J

    @property
    def operand(self) -> Operand:
        """What the forward product multiplies by, for the limit of its time."""
        held = [buffer for name, buffer in self.named_buffers() if name.split(".")[0] not in ("backward", "bias")]
        return Operand(self.values.numel(), held_bytes(held), self.unit)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        """x @ Wᵀ (+ bias): (B, K) → (B, N). Stages ``layout`` and ``matmul``.

        What is contiguous is no view of more: ranks sum over it in place, compiled code too.
        """
        raise NotImplementedError

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """grad_y @ W: (B, N) → (B, K), for a contiguous grad_y. Stages ``layout`` and ``grad_x``."""
        assert self.backward is not None, "packed for the forward pass alone"
        return self.backward(grad_y_BN)

    def into(self, x_BK: torch.Tensor, out_BN: torch.Tensor) -> torch.Tensor:
        """The forward product, written where others read it; where the kernel cannot, copied there."""
        y_BN = self(x_BK)
        with stage("layout"):
            return out_BN.copy_(copied(y_BN))

    def grad_into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        """``grad_input``, likewise."""
        if self.backward is not None:
            return self.backward.into(grad_y_BN, out_BK)
        grad_x_BK = self.grad_input(grad_y_BN)
        with stage("layout"):
            return out_BK.copy_(copied(grad_x_BK))

    def grad_kept(self, grad_y_BN: torch.Tensor, kept: Every, out_BJ: torch.Tensor | None = None) -> torch.Tensor:
        """Of ``grad_input`` the columns (B, K/2) that a mask keeps whose rows are all alike; the others are zeros."""
        grad_x_BK = self.grad_input(grad_y_BN)
        with stage("layout"):
            found_BJ = copied(kept.take(grad_x_BK))
            return found_BJ if out_BJ is None else out_BJ.copy_(found_BJ)

    def summed(self, x_BK: torch.Tensor, peers: Peers) -> torch.Tensor:
        """The forward products of all ranks, summed; of a kernel that fuses."""
        raise NotImplementedError

    def check_since(self, writes: int) -> None:
        """Raises StalePacking if it was written after it had been written so often."""
        if self.writes != writes:
            raise StalePacking.before_backward(self.values)

    def write(self, values_NJ: torch.Tensor) -> None:
        """Take over new kept values, of any dtype, in the order of ``values``; or ``values`` itself, changed."""
        vars(self)["writes"] += 1  # what setting it comes to, without what modules look for then
        values = self.values
        mine = values_NJ.data_ptr() == values.data_ptr()
        if self.backward is not None:
            self.backward.write(values_NJ, None if mine else values)
        elif not mine:
            values.copy_(values_NJ)
        if mine and not values.is_inference():
            increment_version([values])  # the parameter whose memory this is may have a counter of its own

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        """The kept values of a dense matrix, in the order of ``values``."""
        raise NotImplementedError

    def recompress(self, w_NK: torch.Tensor) -> None:
        """Take over a dense matrix, zero where the mask drops, the way compression does."""
        self.write(self.kept_of(w_NK))


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
        pruner, training_pruner: of a W that it is to multiply by alone, frozen or trained, unless another is asked for.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    sparse: ClassVar[bool] = True
    contender: ClassVar[bool] = True
    unit: ClassVar[str] = Packed.unit
    most_tokens: ClassVar[int | None] = None
    fuses: ClassVar[bool] = False
    training_mask: ClassVar[str] = "tile"
    pruner: ClassVar[str] = "magnitude"
    training_pruner: ClassVar[str] = "tile_magnitude"

    @property
    def name(self) -> str:
        """By which it is registered."""
        return KERNELS.name_of(type(self))

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why this kernel cannot run on that device and dtype."""
        if device.type not in self.device_types:
            return f"needs a {' or '.join(self.device_types)} device, this is {device.type}"
        if dtype not in self.dtypes:
            return f"multiplies {', '.join(map(str, self.dtypes))}, not {dtype}"
        return None

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        """None, or one sentence that says why this kernel cannot take that shape (and that mask, when given)."""
        return None

    def takes(self, tokens: int) -> bool:
        """Whether one reading of W multiplies so many."""
        return self.most_tokens is None or tokens <= self.most_tokens

    def check(self, piece: Piece) -> None:
        """Raises KernelUnavailable or InputError, with the reason, unless ``pack`` can take this piece here."""
        if reason := self.unavailable(piece.device, piece.dtype):
            raise KernelUnavailable(f"kernel {self.name}: {reason}")
        if piece.mask is None and self.sparse:
            raise InputError(f"kernel {self.name}: needs a 2:4 mask, and this piece is dense")
        if reason := self.unsuitable(piece.N, piece.K, piece.dtype, piece.mask):
            raise InputError(f"kernel {self.name}: {reason}")

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        """Pack a piece. ``check`` it first: this assumes that it passed.

        Args:
            backward: ``grad_input`` will be asked for, so that what it needs beside the packing is packed too.
        """
        raise NotImplementedError

    def backward_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None) -> int:
        """Bytes held for the backward pass beside the packing; 0 for kernels that contract over N too.

        Args:
            mask: of the piece; at most, if it is not known.
        """
        return 0

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        """Bytes that the packing of a (N, K) piece holds."""
        raise NotImplementedError

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        """Bytes held at most while packing, the packing included and one row block left out."""
        return self.weight_bytes(N, K, itemsize)

    def resolve(self, piece: Piece, tokens: int, backward: bool, agree: Agree) -> Kernel:
        """The kernel that will run, forward or both ways; itself, for all but ``auto``."""
        return self


def packed_bytes(N: int, K: int, itemsize: int) -> int:
    """Bytes of kept values and two bits of position for each: the format of the sparse tensor cores."""
    return N * K // 2 * itemsize + N * K // 8


KERNELS: Registry[type[Kernel]] = Registry("kernel")


def build_kernel(spec: str) -> Kernel:
    """The kernel that a spec such as ``gathered`` or ``cusparselt:search=no`` names."""
    kind, parameters = KERNELS.resolve(spec)
    return kind(**parameters)
