"""Masked weights multiplied as if they were dense, zeros and all: the ablation that separates idea from hardware."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.base import KERNELS, Kernel
from blockshock.kernels.packed import Packed
from blockshock.matrices import Mask, Piece
from blockshock.stages import stage


class PackedDense(Packed):
    """A dense matrix (N, K): a piece with its zeros, or any other weight."""

    w_NK: torch.Tensor

    def __init__(self, w_NK: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("w_NK", w_NK, persistent=False)
        self.algorithm = "transposed" if is_transposed(w_NK) else ""
        self.hold_bias(bias)

    @property
    def values(self) -> torch.Tensor:
        """All of the matrix."""
        return self.w_NK

    @property
    def shape(self) -> tuple[int, int]:
        N, K = self.w_NK.shape
        return N, K

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        held = self._buffers
        with stage(self.product_stage):
            return F.linear(x_BK, held["w_NK"], held["bias"])  # type: ignore[arg-type]

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        with stage("grad_x"):
            return grad_y_BN @ self.w_NK

    def into(self, x_BK: torch.Tensor, out_BN: torch.Tensor) -> torch.Tensor:
        return multiplied(x_BK, self.w_NK, self.bias, out_BN, self.product_stage)

    def grad_into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        with stage("grad_x"):
            return torch.mm(grad_y_BN, self.w_NK, out=out_BK)

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return w_NK


def is_transposed(w_NK: torch.Tensor) -> bool:
    """Whether memory holds Wᵀ row by row."""
    return w_NK.T.is_contiguous() and not w_NK.is_contiguous()


def multiplied(
    x_BK: torch.Tensor, w_NK: torch.Tensor, bias: torch.Tensor | None, out_BN: torch.Tensor, into: str = "matmul"
) -> torch.Tensor:
    """x Wᵀ + bias, written to ``out_BN``, as the stage ``into``."""
    with stage(into):
        if bias is None:
            return torch.mm(x_BK, w_NK.T, out=out_BN)
        return torch.addmm(bias, x_BK, w_NK.T, out=out_BN)


@KERNELS.register("dense")
class Dense(Kernel):
    """Any device, dtype and mask. Stores all N·K elements of the piece."""

    sparse = False
    contender = False
    training_mask = "1100"

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedDense(piece.dense(), bias)

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return N * K * itemsize
