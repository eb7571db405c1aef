"""Few tokens, at the rate of memory: kept values go by once, and what is not waited for is in flight.

The product of few tokens takes as long as it takes to read W, of which 2:4 holds 9/16. A library whose tiles are made
for many tokens moves less than half of what the memory gives; this kernel, streamed.cu, comes near to what a copy
moves, the nearer the larger W is. It multiplies by mma.sp (PTX ISA, "Warp-level matrix multiply-accumulate for sparse
matrices"), m16n8k32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockshock.kernels.backward import SparseCores, no_cuda, too_old
from blockshock.kernels.base import KERNELS
from blockshock.kernels.formats import Format
from blockshock.kernels.layout import aligned_rows
from blockshock.kernels.packed import Packed
from blockshock.kernels.streamed_bytes import PackedStreamedBytes
from blockshock.kernels.streamed_launch import multiplied
from blockshock.kernels.streamed_layout import fragments, in_rows, metadata_bytes
from blockshock.kernels.streamed_plan import MOST_TOKENS
from blockshock.machine import Peers
from blockshock.matrices import Mask, Piece, gather_kept, row_blocks
from blockshock.stages import stage


class PackedStreamed(Packed):
    """``kept_NJ``: the kept values (N, K/2), as they lie in rows. ``metadata``: their positions, by fragments.

    Of a mask whose tile repeats they are those of one tile.
    """

    kept_NJ: torch.Tensor
    metadata: torch.Tensor
    unit, fuses = "2:4", True

    def __init__(self, piece: Piece, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.N, self.K = piece.N, piece.K
        kept_NJ = torch.empty(piece.N, piece.K // 2, dtype=piece.dtype, device=piece.device)
        for start, stop in row_blocks(piece.N, piece.source.K * piece.dtype.itemsize):
            kept_NJ[start:stop] = piece.kept_values(start, stop)
        self.register_buffer("kept_NJ", kept_NJ, persistent=False)
        self.register_buffer("metadata", fragments(piece.kept, piece.device), persistent=False)
        self.hold_bias(bias)

    @property
    def values(self) -> torch.Tensor:
        return self.kept_NJ

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return _product(self.kept_NJ, self.metadata, x_BK, self.bias)
        x_BK, held = aligned_rows(x_BK), self._buffers
        with stage(self.product_stage):
            return multiplied(held["kept_NJ"], held["metadata"], x_BK, held["bias"])  # type: ignore[arg-type]

    def into(self, x_BK: torch.Tensor, out_BN: torch.Tensor) -> torch.Tensor:
        x_BK = aligned_rows(x_BK)
        with stage(self.product_stage):
            return multiplied(self.kept_NJ, self.metadata, x_BK, self.bias, out_BN=out_BN)

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        return (aligned_rows(x_BK),)

    def summed(self, x_BK: torch.Tensor, peers: Peers) -> torch.Tensor:
        x_BK = aligned_rows(x_BK)
        with stage(self.product_stage):
            return multiplied(self.kept_NJ, self.metadata, x_BK, self.bias, peers=peers)

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return gather_kept(w_NK, in_rows(self.metadata, self.N, self.K))


@torch.library.custom_op(
    "blockshock::streamed",
    mutates_args=(),
    schema="(Tensor values, Tensor metadata, Tensor x, Tensor? bias) -> Tensor",
)
def _product(values: torch.Tensor, metadata: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product of compiled code, which knows where x lies only when it runs."""
    return multiplied(values, metadata, aligned_rows(x), bias)


@_product.register_fake
def _(values: torch.Tensor, metadata: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape[0], values.shape[0])


@KERNELS.register("streamed")
class Streamed(SparseCores):
    """CUDA devices of compute capability 8.0 and up, bf16 and fp16, any mask, few tokens. Stores 9/16 of dense bytes,
    and of a mask whose tile repeats half.

    More tokens than ``most_tokens`` are multiplied part by part: W is read again for each. In a format it gives y, all
    scales and the bias in it, and stores 5/8 of its dense bytes, or half.
    """

    most_tokens, fuses = MOST_TOKENS, True
    formats = ("int8", "fp8")

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return super().unavailable(device, dtype) or no_cuda() or too_old(device)

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 16 or K % 32:
            return f"needs N to be a multiple of 16 and K of 32, got N = {N}, K = {K}"
        return None

    def pack_forward(self, piece: Piece, bias: torch.Tensor | None) -> Packed:
        return PackedStreamed(piece, bias)

    def pack_quantised(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> Packed:
        return PackedStreamedBytes(piece, bias, format, shared_N)

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        return PackedStreamedBytes.held_bytes(N, K, mask)

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return N * K // 2 * itemsize + metadata_bytes(N, K, mask=mask)

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        # The positions in rows, filled up, and in fragments.
        return self.weight_bytes(N, K, itemsize) + 2 * metadata_bytes(N, K)
