"""What packings of quantised weights share: x is quantised as it comes, and nothing goes backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NoReturn

import torch

from blockshock.errors import InputError
from blockshock.kernels.formats.base import Format, Stored
from blockshock.kernels.formats.orders import Order
from blockshock.kernels.packed import Packed
from blockshock.machine import held_bytes
from blockshock.matrices import row_blocks
from blockshock.measure import Operand
from blockshock.stages import copied, stage

FORWARD_ALONE = "quantised weights go forward alone"


class PackedQuantised(Packed):
    """A piece in a format, with one scale an output channel. x is quantised with one a token: stage ``quantise``.

    Attributes:
        format: of what is stored.
        values_held: numbers that a product multiplies by.
        order: in which its product reads what is stored of x.
        gives: dtypes of y, and so of x, if not all that the format is for.
    """

    scale_N: torch.Tensor
    order = Order.ROWS
    gives: ClassVar[tuple[torch.dtype, ...]] = Format.dtypes

    def __init__(self, K: int, format: Format, scale_N: torch.Tensor, bias: torch.Tensor | None, values: int) -> None:
        super().__init__()
        self.N, self.K, self.format, self.values_held = len(scale_N), K, format, values
        self.sums = format.sums(scale_N.device)
        self.register_buffer("scale_N", scale_N, persistent=False)
        self.hold_bias(bias)

    @property
    def shape(self) -> tuple[int, int]:
        return self.N, self.K

    @property
    def operand(self) -> Operand:
        unit = self.format.name if self.unit == "dense" else f"{self.format.name} {self.unit}"
        return Operand(self.values_held, held_bytes([held for held in self.buffers() if held is not self.bias]), unit)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        if not len(x_BK):
            return x_BK.new_empty(0, self.N)
        return self.multiply(self.stored(x_BK), x_BK.dtype)

    def stored(self, x_BK: torch.Tensor) -> Stored:
        """What is stored of x, with each token's scale. Raises InputError where y is not given in its dtype."""
        if x_BK.dtype not in self.gives:
            raise InputError(f"y is given in {', '.join(map(str, self.gives))}, not in {x_BK.dtype}: cast x")
        with stage("quantise"):
            return self.format.quantise_in(x_BK, self.order)

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        """What is stored of x; x itself where that lies in tiles, of which no rows can be taken. Stage ``quantise``."""
        return super().laid_out(x_BK) if self.order is Order.TILES else self.stored(x_BK)

    def laid_into(self, laid: Sequence[torch.Tensor], out_BN: torch.Tensor) -> torch.Tensor:
        if self.order is Order.TILES:
            return super().laid_into(laid, out_BN)
        y_BN = self.multiply(Stored(*laid), out_BN.dtype)
        with stage("layout"):
            return out_BN.copy_(copied(y_BN))

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        """y (B, N) of what is stored of x. Stages ``layout``, ``matmul`` and ``dequantise``."""
        raise NotImplementedError

    def grad_input(self, grad_y_BN: torch.Tensor) -> NoReturn:
        raise InputError(f"{FORWARD_ALONE}: call the layer under torch.inference_mode(), or take format plain")


Rows = Callable[[int, int], torch.Tensor]
"""Gives rows [start, stop) of a matrix."""


def row_scales(block: Rows, N: int, K: int, format: Format, device: torch.device) -> torch.Tensor:
    """The scales of the rows of a W (N, K), float32 (N,)."""
    scale_N = torch.empty(N, dtype=torch.float32, device=device)
    for start, stop in row_blocks(N, K * 4):
        scale_N[start:stop] = format.weights.scales(block(start, stop))[:, 0]
    return scale_N


def quantised(
    block: Rows,
    N: int,
    K: int,
    format: Format,
    device: torch.device,
    multiple: int = 1,
    shared_N: torch.Tensor | None = None,
) -> Stored:
    """What is stored of a W (N, K), filled up with zeros to a multiple both ways.

    Args:
        block: gives rows [start, stop) of the matrix.
        shared_N: the scales, where the matrix is a part of whole rows, which these are of.

    Raises:
        InputError: a row is so large that sums of its products overflow float32.
    """
    rows, columns = (-(-size // multiple) * multiple for size in (N, K))
    numbers = format.weights
    q_NK = torch.zeros(rows, columns, dtype=numbers.stored, device=device)
    scale_N = torch.empty(N, dtype=torch.float32, device=device)
    for start, stop in row_blocks(N, K * 4):
        if shared_N is None:
            q_RK, scale_R1 = numbers.quantise(block(start, stop))
        else:
            scale_R1 = shared_N[start:stop, None]
            q_RK = numbers.stored_by(block(start, stop), scale_R1)
        # Libraries that look for what is zero read the bits: −0.0 is none to them.
        q_NK[start:stop, :K] = torch.where(q_RK.float() == 0, 0, q_RK.float()).to(numbers.stored)
        scale_N[start:stop] = scale_R1[:, 0]
    _check_sums(scale_N, K, format)
    return Stored(q_NK, scale_N)


def _check_sums(scale_N: torch.Tensor, K: int, format: Format) -> None:
    """Each sum of K products, times the scale of its channel, is finite in float32."""
    row = int(scale_N.argmax())
    scale, largest = float(scale_N[row]), format.weights.largest
    if not scale * K * format.largest * largest <= torch.finfo(torch.float32).max or not math.isfinite(scale):
        raise InputError(
            f"format {format.name}: row {row} of W goes up to {scale * largest:.3g}, so that sums of its {K} "
            "products overflow float32: scale W down, and y up again"
        )
