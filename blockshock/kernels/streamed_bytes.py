"""The kernel streamed in eight bits: sums are scaled, and the bias added, where they are made. bytes.cu says how."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.kernels.backward import SparseCores
from blockshock.kernels.formats import Format, Order, PackedQuantised, Stored, quantised
from blockshock.kernels.layout import aligned_rows
from blockshock.kernels.streamed_launch import Scales, multiplied
from blockshock.kernels.streamed_layout import fragments_of_bytes, metadata_bytes
from blockshock.kernels.streamed_plan import STEP
from blockshock.matrices import Mask, Piece, gather_kept, mask_positions
from blockshock.stages import stage


class PackedStreamedBytes(PackedQuantised):
    """``kept_NJ``: what is stored of the kept values (N, K/2), in rows. ``metadata``: their positions, by fragments."""

    kept_NJ: torch.Tensor
    metadata: torch.Tensor
    unit, gives = "2:4", SparseCores.dtypes

    def __init__(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> None:
        q_NK, scale_N = quantised(piece.kept_block, piece.N, piece.K, format, piece.device, shared_N=shared_N)
        super().__init__(piece.K, format, scale_N, bias, piece.N * piece.K // 2)
        positions = mask_positions(piece.kept).to(piece.device)
        kept_NJ = gather_kept(q_NK.view(torch.int8), positions).view(q_NK.dtype)
        self.register_buffer("kept_NJ", kept_NJ, persistent=False)
        fp8 = q_NK.dtype == torch.float8_e4m3fn
        self.order = Order.CROSSED if fp8 else Order.ROWS  # as bytes.cu has it
        self.register_buffer("metadata", fragments_of_bytes(piece.kept, fp8, positions), persistent=False)

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return _product(self.kept_NJ, self.metadata, x.numbers, x.scale, self.scale_N, self.bias, dtype)
        return self._multiply(x, Scales(x.scale.contiguous(), self.scale_N, dtype), self.bias)

    def product(self, q_BK: torch.Tensor) -> torch.Tensor:
        """The bare product of what a format stores, by scales of one. Stages ``layout`` and ``matmul``."""
        ones = q_BK.new_ones(max(len(q_BK), self.N), dtype=torch.float32)
        return self._multiply(Stored(self.order.of(q_BK), ones), Scales(ones, ones, torch.bfloat16), None)

    def _multiply(self, x: Stored, scales: Scales, bias: torch.Tensor | None) -> torch.Tensor:
        x_BK = aligned_rows(x.numbers)
        with stage("matmul"):
            return multiplied(self.kept_NJ, self.metadata, x_BK, bias, scales=scales)

    @staticmethod
    def held_bytes(N: int, K: int, mask: Mask | None = None) -> tuple[int, int]:
        """Bytes that it holds of W (N, K), by arithmetic, and those held at most while it is made."""
        positions = metadata_bytes(N, K, 2 * STEP)
        held = N * K // 2 + metadata_bytes(N, K, 2 * STEP, mask) + 4 * N
        # What is stored of all of W, and the positions in rows, filled up, and in fragments.
        return held, held + N * K + 2 * positions


@torch.library.custom_op(
    "blockshock::streamed_bytes",
    mutates_args=(),
    schema="(Tensor values, Tensor metadata, Tensor x, Tensor of_tokens, Tensor of_channels, Tensor? bias, "
    "ScalarType dtype) -> Tensor",
)
def _product(
    values: torch.Tensor,
    metadata: torch.Tensor,
    x: torch.Tensor,
    of_tokens: torch.Tensor,
    of_channels: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of compiled code, which knows where x lies only when it runs."""
    scales = Scales(of_tokens.contiguous(), of_channels, dtype)
    return multiplied(values, metadata, aligned_rows(x), bias, scales=scales)


@_product.register_fake
def _(values: torch.Tensor, metadata: torch.Tensor, x: torch.Tensor, *others: Any) -> torch.Tensor:
    *_, dtype = others
    return x.new_empty(x.shape[0], values.shape[0], dtype=dtype)
