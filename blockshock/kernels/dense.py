"""Masked weights multiplied as if they were dense, zeros and all: the ablation that separates idea from hardware."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.blocks import row_blocks
from blockshock.kernels.base import KERNELS, Half, Kernel, Packed
from blockshock.stages import stage


class PackedDense(Packed):
    w_NK: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, half: Half, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.mask = half.mask
        self.register_buffer("w_NK", half.dense())
        self.register_buffer("bias", bias)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage(self.product_stage):
            return F.linear(x_BK, self.w_NK, self.bias)

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        with stage("grad_x"):
            return grad_y_BN @ self.w_NK

    def refresh_from(self, half: Half) -> None:
        self.w_NK.copy_(half.dense())

    def refresh(self, values_NJ: torch.Tensor) -> None:
        for start, stop in row_blocks(self.mask.N, self.mask.K):
            self.w_NK[start:stop][self.mask.rows(start, stop)] = values_NJ[start:stop].flatten()


@KERNELS.register("dense")
class Dense(Kernel):
    """Any device, dtype and mask. Stores all N·K elements of the half."""

    sparse = False
    contender = False

    def pack(self, half: Half, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedDense(half, bias)

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        return N * K * itemsize
