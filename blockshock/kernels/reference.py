"""Compressed24 decompressed block by block and multiplied: slow, right, and possible anywhere."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.base import KERNELS, Kernel
from blockshock.kernels.packed import Packed
from blockshock.matrices import Compressed24, Piece, gather_kept, row_blocks
from blockshock.stages import stage


class PackedReference(Packed):
    def __init__(self, piece: Piece, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = Compressed24.from_source(piece.source, piece.columns, piece.kept, False, piece.rows)
        self.hold_bias(bias)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("matmul"):
            y_BN = x_BK.new_empty(len(x_BK), self.weight.N)
            for start, stop in row_blocks(self.weight.N, self.weight.K * x_BK.itemsize):
                bias = None if self.bias is None else self.bias[start:stop]
                y_BN[:, start:stop] = F.linear(x_BK, self.weight.decompress(start, stop), bias)
            return y_BN

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        with stage("grad_x"):
            grad_x_BK = grad_y_BN.new_empty(len(grad_y_BN), self.weight.K)
            for start, stop in row_blocks(self.weight.K, self.weight.N * grad_y_BN.itemsize, multiple=8):
                grad_x_BK[:, start:stop] = grad_y_BN @ self.weight.decompress_columns(start, stop)
            return grad_x_BK

    @property
    def values(self) -> torch.Tensor:
        return self.weight.values_NJ

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return gather_kept(w_NK, self.weight.positions)


@KERNELS.register("reference")
class Reference(Kernel):
    """Any device, dtype and mask. Stores kept values and 4 bits per group: 9/16 of dense bytes in bf16."""

    contender = False

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedReference(piece, bias)

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        return N * (K // 2 * itemsize + -(-K // 8))
