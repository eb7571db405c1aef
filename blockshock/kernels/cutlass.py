"""torch's CUTLASS 2:4 product, which exists for compute capability 8.x alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from blockshock.kernels.backward import SparseCores
from blockshock.kernels.base import KERNELS, packed_bytes
from blockshock.kernels.formats import Format
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.marked import marked, write_kept
from blockshock.kernels.packed import Packed
from blockshock.machine import torch_internals
from blockshock.matrices import Mask, Piece
from blockshock.stages import stage


class PackedCutlass(Packed):
    """``packed`` (N, K/2) kept values, ``meta`` their positions in CUTLASS's order."""

    packed: torch.Tensor
    meta: torch.Tensor
    unit = "2:4"

    def __init__(self, piece: Piece, bias: torch.Tensor | None) -> None:
        super().__init__()
        w_NK, has_zeros = marked(piece)
        sparse = SparseSemiStructuredTensorCUTLASS.from_dense(w_NK)
        self.register_buffer("packed", sparse.packed, persistent=False)
        self.register_buffer("meta", sparse.meta, persistent=False)
        if has_zeros:
            write_kept(piece, self.values)
        self.hold_bias(bias)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        tokens = len(x_BK)
        if not tokens:
            return x_BK.new_empty(0, len(self.packed))
        x_BK = dense_rows(x_BK, multiple=8)
        with stage(self.product_stage):
            y_NB = torch_internals.cutlass_mm(self.packed, self.meta, x_BK.t(), self.bias)
        return y_NB.t()[:tokens]

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        return (dense_rows(x_BK),)  # which a product of a multiple of eight takes as they are

    @property
    def values(self) -> torch.Tensor:
        return self.packed

    def recompress(self, w_NK: torch.Tensor) -> None:
        compressed = SparseSemiStructuredTensorCUTLASS.from_dense(dense_rows(w_NK))
        assert compressed.packed is not None
        assert compressed.meta is not None
        self.packed.copy_(compressed.packed)
        self.meta.copy_(compressed.meta)
        if self.backward is not None:
            self.backward.recompress(w_NK)


@KERNELS.register("cutlass")
class Cutlass(SparseCores):
    """CUDA devices of compute capability 8.x; N a multiple of 32 and K of 64. Stores 9/16 of dense bytes."""

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if major != 8:
            return (
                "torch has CUTLASS 2:4 for compute capability 8.x only (torchao has it in fp8 for 9.0), this GPU has "
                f"{major}.{minor}: use cusparselt"
            )
        return None

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 32 or K % 64:
            return f"needs N to be a multiple of 32 and K of 64, got N = {N}, K = {K}"
        return None

    def unsuitable_format(self, format: Format, N: int, K: int, dtype: torch.dtype) -> str | None:
        reason = super().unsuitable_format(format, N, K, dtype)
        return reason and f"{reason}. torch has no CUTLASS 2:4 in 8 bits with scales of rows: torchao has, in fp8"

    def pack_forward(self, piece: Piece, bias: torch.Tensor | None) -> Packed:
        return PackedCutlass(piece, bias)

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        return packed_bytes(N, K, itemsize) + N * K * itemsize
