"""Compressed24 decompressed block by block and multiplied: slow, right, and possible anywhere."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.base import KERNELS, Kernel
from blockshock.kernels.formats import Format, PackedQuantised, Stored, quantised
from blockshock.kernels.packed import Packed
from blockshock.matrices import Compressed24, Mask, Piece, gather_kept, row_blocks
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


class PackedQuantisedReference(PackedQuantised):
    """What is stored, decompressed and multiplied in float32: its numbers have so few bits that products are exact."""

    def __init__(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> None:
        q_NK, scale_N = quantised(piece.kept_block, piece.N, piece.K, format, piece.device, shared_N=shared_N)
        super().__init__(piece.K, format, scale_N, bias, piece.N * piece.K // 2)
        self.weight = Compressed24.from_tensor(q_NK.view(torch.int8), piece.kept)
        self._dtype = q_NK.dtype

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        x_BK = x.numbers.float()
        sums_BN = x_BK.new_empty(len(x_BK), self.N)
        with stage("matmul"):
            for start, stop in row_blocks(self.N, self.K * x_BK.itemsize):
                w_RK = self.weight.decompress(start, stop).view(self._dtype).float()
                sums_BN[:, start:stop] = x_BK @ w_RK.T
        return self.format.descale(sums_BN, x.scale, self.scale_N, self.bias, dtype)


@KERNELS.register("reference")
class Reference(Kernel):
    """Any device, dtype and mask. Stores kept values and 4 bits per group: 9/16 of dense bytes in bf16."""

    contender = False
    formats = ("int8", "fp8", "fp8_e5m2")

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedReference(piece, bias)

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return N * (K // 2 * itemsize + -(-K // 8))

    def pack_quantised(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> Packed:
        return PackedQuantisedReference(piece, bias, format, shared_N)

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        size = format.weights.stored.itemsize
        held = self.weight_bytes(N, K, size) + 4 * N
        return held, held + N * K * size
