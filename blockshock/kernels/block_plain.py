"""Block kernels in plain torch, for any device and dtype: one that skips what is dropped, and one that does not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional as F

from blockshock.kernels.block_kernels import BLOCK_KERNELS, BlockKernel, BlockLayout, PackedBlocks
from blockshock.kernels.dense import PackedDense
from blockshock.kernels.packed import Packed
from blockshock.matrices import Piece
from blockshock.stages import stage


class PackedByRows(PackedBlocks):
    """Each row of blocks as one dense product with the columns of x that it meets."""

    def __init__(self, piece: Piece, size: int, bias: torch.Tensor | None) -> None:
        super().__init__(piece, size, bias)
        self._ends = list(pairwise(self.starts.tolist()))

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        with stage(self.product_stage):
            x_BCb, y_BN = x_BK.unflatten(1, (-1, self.size)), x_BK.new_empty(len(x_BK), self.N)
            for row, (first, last) in enumerate(self._ends):
                features = slice(row * self.size, (row + 1) * self.size)
                bias = None if self.bias is None else self.bias[features]
                w_bJ = self.blocks[first:last].transpose(0, 1).flatten(1)
                y_BN[:, features] = F.linear(x_BCb[:, self.columns[first:last]].flatten(1), w_bJ, bias)
            return y_BN


@BLOCK_KERNELS.register("reference")
class BlockReference(BlockKernel):
    """Any device, dtype and size. Stores the kept blocks, and 8 bytes for each."""

    def pack_forward(self, piece: Piece, size: int, bias: torch.Tensor | None) -> PackedBlocks:
        return PackedByRows(piece, size, bias)


@BLOCK_KERNELS.register("dense")
class BlockDense(BlockKernel):
    """The ablation: any device, dtype and size. Stores all N·K elements, and multiplies the zeros."""

    def pack(self, piece: Piece, size: int, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedDense(piece.dense(), bias)

    def weight_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        return layout.N * layout.K * itemsize

    def backward_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        return 0
