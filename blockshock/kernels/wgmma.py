"""Many tokens in eight bits on Hopper: sums are scaled, and the bias added, where they are made.

A library's 2:4 product takes no scale a token: what it gives is read again, scaled, and written again, which takes a
good part of what 2:4 saves. This kernel, wgmma.cu, gives y. The pass that quantises x writes it as the tensor cores
read it. It multiplies by wgmma.mma_async.sp, m64n256k64 (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from blockshock.kernels.backward import SparseCores, no_cuda
from blockshock.kernels.base import KERNELS
from blockshock.kernels.formats import TILE_ROWS, Format, Order, PackedQuantised, Stored, quantised
from blockshock.kernels.packed import Packed
from blockshock.kernels.source import source_of
from blockshock.kernels.wgmma_layout import CLUSTER, FEATURES, TILE_BYTES, in_tiles, tiles_of
from blockshock.machine import CudaKernel, compiled, on_gpu
from blockshock.matrices import Mask, Piece, gather_kept, mask_positions, row_blocks
from blockshock.stages import stage

_THREADS = 384
_STAGES = 5
"""Steps that are under way at a time: as many as there is room for."""
_SIDE_BY_SIDE = 8
"""Tiles of tokens that go through all features together, at most: what was fastest on H100."""
SHARED_BYTES = _STAGES * (TILE_ROWS * 128 + TILE_BYTES) + 2 * (32 * 64 * 2) + 2 * TILE_ROWS * 4 + 16 * _STAGES
"""Of a block: tiles of x and W of each stage; y's and scales of two warpgroups; two barriers a stage."""


class PackedWgmma(PackedQuantised):
    """``tiles``: what is stored of the kept values, and their positions, as ``in_tiles`` has them."""

    tiles: torch.Tensor
    unit, order, gives = "2:4", Order.TILES, SparseCores.dtypes

    def __init__(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> None:
        N, K, device = piece.N, piece.K, piece.device
        q_NK, scale_N = quantised(piece.kept_block, N, K, format, device, shared_N=shared_N)
        super().__init__(K, format, scale_N, bias, N * K // 2)
        positions, bytes_NK = mask_positions(piece.kept).to(device), q_NK.view(torch.int8)
        tiles = torch.empty(*tiles_of(N, K), TILE_BYTES, dtype=torch.uint8, device=device)
        for start, stop in row_blocks(N, 8 * K, multiple=FEATURES * CLUSTER):
            kept_RJ = gather_kept(bytes_NK[start:stop], positions[start:stop])
            made = in_tiles(kept_RJ, positions[start:stop])
            tiles[start // FEATURES :][: len(made)] = made
        self.register_buffer("tiles", tiles, persistent=False)

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        operands = self.tiles, x.numbers, x.scale.contiguous(), self.scale_N, self.bias, dtype
        if torch.compiler.is_compiling():
            return _product(*operands)
        with stage("matmul"):
            return multiplied(*operands)

    def product(self, q_BK: torch.Tensor) -> torch.Tensor:
        """The bare product of what a format stores, by scales of one. Stages ``layout`` and ``matmul``."""
        with stage("layout"):
            tiles, ones = self.order.of(q_BK), q_BK.new_ones(max(len(q_BK), self.N), dtype=torch.float32)
        with stage("matmul"):
            return multiplied(self.tiles, tiles, ones[: len(q_BK)], ones[: self.N], None, torch.bfloat16)

    @staticmethod
    def held_bytes(N: int, K: int) -> tuple[int, int]:
        """Bytes that it holds of W (N, K), by arithmetic, and those held at most while it is made, but for one row
        block."""
        down, steps = tiles_of(N, K)
        held = down * steps * TILE_BYTES + 4 * N
        return held, held + N * K + N * -(-K // 8)  # what is stored of all of W, and the positions


def multiplied(
    tiles: torch.Tensor,
    x_tiles: torch.Tensor,
    of_tokens: torch.Tensor,
    of_features: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """y (B, N) in a dtype: the product of what ``in_tiles`` and ``Order.TILES`` have, times both scales, plus the bias.

    Args:
        of_tokens, of_features: float32, one each, contiguous.
    """
    B, N, device = len(of_tokens), len(of_features), x_tiles.device
    y_BN = torch.empty(B, N, dtype=dtype, device=device)
    of_x, steps = x_tiles.shape[:2]
    turns = len(tiles) // CLUSTER * of_x
    with on_gpu(device):  # whose current stream the launch takes
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        _kernel(dtype, x_tiles.dtype == torch.float8_e4m3fn, device)(
            grid=(CLUSTER * min(turns, processors // CLUSTER), 1, 1),
            block=(_THREADS, 1, 1),
            # A bias that is not there is never read: y stands for it.
            args=[
                *(tiles, x_tiles, y_BN if bias is None else bias, y_BN, of_tokens, of_features),
                *(N, B, steps, side_by_side(of_x), int(bias is not None)),
            ],
            shared_mem=SHARED_BYTES,
            early=True,  # its barriers are there before x is
        )
    return y_BN


def side_by_side(tiles: int) -> int:
    """How many of so many tiles of tokens go through all features together: as alike as can be, not above the most."""
    return -(-tiles // -(-tiles // _SIDE_BY_SIDE))


@cache
def _kernel(dtype: torch.dtype, fp8: bool, device: torch.device) -> CudaKernel:
    """For a y of that dtype; of that GPU, which must be the current one."""
    definitions = {"BF16": int(dtype == torch.bfloat16), "FP8": int(fp8), "EIGHT_BITS": 1, "ORDERED": 1, "CLUSTERS": 1}
    definitions |= {"EARLY": 1, "CLUSTER": CLUSTER, "STAGES": _STAGES, "SHARED_BYTES": SHARED_BYTES}
    return compiled(source(), "wgmma_product", definitions, SHARED_BYTES, of_its_own=True)


def source() -> str:
    """In CUDA C++."""
    return source_of("ptx", "hopper", "wgmma")


@torch.library.custom_op(
    "blockshock::wgmma",
    mutates_args=(),
    schema="(Tensor tiles, Tensor x, Tensor of_tokens, Tensor of_features, Tensor? bias, ScalarType dtype) -> Tensor",
)
def _product(
    tiles: torch.Tensor,
    x: torch.Tensor,
    of_tokens: torch.Tensor,
    of_features: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product of compiled code."""
    return multiplied(tiles, x.contiguous(), of_tokens.contiguous(), of_features, bias, dtype)


@_product.register_fake
def _(tiles: torch.Tensor, x: torch.Tensor, of_tokens: torch.Tensor, of_features: torch.Tensor, *others: Any) -> Any:
    *_, dtype = others
    return x.new_empty(of_tokens.shape[0], of_features.shape[0], dtype=dtype)


@KERNELS.register("wgmma")
class Wgmma(SparseCores):
    """CUDA devices of compute capability 9.0, in int8 and fp8 alone, y in bf16 or fp16, any mask, many tokens.

    Stores 5/8 of dense bytes, filled up to multiples of 256 both ways.
    """

    formats, plain = ("int8", "fp8"), False

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype) or no_cuda():
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) != (9, 0):
            return f"takes instructions of compute capability 9.0 alone, this GPU has {major}.{minor}: use streamed"
        return None

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 8 or K % 8:
            return f"needs N and K to be multiples of 8, got N = {N}, K = {K}"
        return None

    def pack_quantised(
        self, piece: Piece, bias: torch.Tensor | None, format: Format, shared_N: torch.Tensor | None = None
    ) -> Packed:
        return PackedWgmma(piece, bias, format, shared_N)

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        return PackedWgmma.held_bytes(N, K)
