"""Few tokens, at the rate of memory: kept values go by once, and what is not waited for is in flight.

The product of few tokens takes as long as it takes to read W, of which 2:4 holds 9/16. A library whose tiles are made
for many tokens moves less than half of what the memory gives; this kernel, streamed.cu, comes near to what a copy
moves, the nearer the larger W is. It multiplies by mma.sp (PTX ISA, "Warp-level matrix multiply-accumulate for sparse
matrices"), m16n8k32.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

from blockshock.kernels.backward import SparseCores, too_old
from blockshock.kernels.base import KERNELS
from blockshock.kernels.layout import aligned_rows
from blockshock.kernels.packed import Packed
from blockshock.kernels.source import source_of
from blockshock.kernels.streamed_plan import MOST_TOKENS, STEP, WARPS, Plan, plan_for
from blockshock.machine import CudaKernel, Peers, compiled
from blockshock.matrices import Mask, Piece, gather_kept, mask_positions, row_blocks
from blockshock.stages import stage

_MOST_BLOCKS = 4096
"""Of a launch that sums over ranks: each has a flag."""
WAIT_SECONDS = 600
"""After which a block that waits for a peer's ends in an error, as torch's collectives do."""
_BEYOND = 0x44
"""Positions of two groups beyond K: the first two of four. Their values are zeros."""
_ORDERED_SINCE = (12, 5)
"""CUDA whose compiler knows that metadata are in ascending order."""
_ADDED = 256
"""Threads of a block that adds up splits."""


class PackedStreamed(Packed):
    """``kept_NJ``: the kept values (N, K/2), as they lie in rows. ``metadata``: their positions, by fragments."""

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
        metadata = _in_fragments(mask_positions(piece.kept).to(piece.device))
        self.register_buffer("metadata", metadata, persistent=False)
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

    def summed(self, x_BK: torch.Tensor, peers: Peers) -> torch.Tensor:
        x_BK = aligned_rows(x_BK)
        with stage(self.product_stage):
            return multiplied(self.kept_NJ, self.metadata, x_BK, self.bias, peers=peers)

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return gather_kept(w_NK, _in_rows(self.metadata, self.K))


def _in_fragments(positions_NP: torch.Tensor) -> torch.Tensor:
    """Packed positions (N, K/8) in the order in which lanes read them: (N/16, ⌈K/128⌉, 32 lanes, 8 bytes).

    Lane 4g + 2p + h has the 16 columns h of the products p and 2 + p of a step's four, of rows g and g + 8.
    """
    positions_NP = F.pad(positions_NP, (0, -positions_NP.shape[1] % (STEP // 8)), value=_BEYOND)
    # Of a row: steps, which two products, which of the two, which half, and the two bytes of its 16 columns.
    split = positions_NP.unflatten(0, (-1, 2, 8)).unflatten(3, (-1, 2, 2, 2, 2))
    return split.permute(0, 3, 2, 5, 6, 4, 1, 7).reshape(len(split), split.shape[3], 32, 8)


def _in_rows(metadata: torch.Tensor, K: int) -> torch.Tensor:
    """The inverse of ``_in_fragments``."""
    tiles, steps = metadata.shape[:2]
    split = metadata.reshape(tiles, steps, 8, 2, 2, 2, 2, 2)
    return split.permute(0, 6, 2, 1, 5, 3, 4, 7).reshape(16 * tiles, steps * STEP // 8)[:, : K // 8].contiguous()


def multiplied(
    values_NJ: torch.Tensor,
    metadata: torch.Tensor,
    x_BK: torch.Tensor,
    bias: torch.Tensor | None,
    plan: Plan | None = None,
    out_BN: torch.Tensor | None = None,
    peers: Peers | None = None,
) -> torch.Tensor:
    """x @ Wᵀ (+ bias), (B, N), in launches of at most MOST_TOKENS tokens.

    Args:
        x_BK: as of ``aligned_rows``.
        plan: of each launch, where it is not the usual one.
        out_BN: where to write it, contiguous.
        peers: it is summed over their ranks, which all multiply as many tokens, at most MOST_TOKENS.
    """
    (N, J), (B, device) = values_NJ.shape, (len(x_BK), x_BK.device)
    y_BN = x_BK.new_empty(B, N) if out_BN is None else out_BN
    with torch.cuda.device(device):  # whose current stream the launches take
        start = 0
        while start < B:
            chosen = plan or plan_for(N, 2 * J, min(B - start, MOST_TOKENS), device)
            stop = start + chosen.tokens
            some_RK, part_RN = (x_BK, y_BN) if chosen.tokens >= B else (x_BK[start:stop], y_BN[start:stop])
            _launch(chosen, values_NJ, metadata, some_RK, bias, part_RN, peers)
            start = stop
    return y_BN


def _launch(
    plan: Plan,
    values_NJ: torch.Tensor,
    metadata: torch.Tensor,
    x_BK: torch.Tensor,
    bias: torch.Tensor | None,
    y_BN: torch.Tensor,
    peers: Peers | None,
) -> None:
    (tokens, N), K = y_BN.shape, x_BK.shape[1]
    through_memory = plan.splits > 1 and not plan.clusters
    partials = y_BN.new_empty(plan.splits, tokens, N, dtype=torch.float32) if through_memory else y_BN
    # What is not there is never read: y stands for it.
    added, has_bias = y_BN if bias is None else bias, int(bias is not None)
    dtype, device = x_BK.dtype, x_BK.device
    sizes = (N, K, tokens, x_BK.stride(0), has_bias)
    args: list[torch.Tensor | int] = [values_NJ, metadata, x_BK, added, y_BN, partials, *sizes]
    if peers is not None:
        memories = [*peers.memories, *peers.memories[:1] * (4 - len(peers.memories))]
        args += [*memories, peers.rank, peers.flags_at, peers.turns]
    _kernel("streamed_product", dtype, plan, device, len(peers.memories) if peers else 0)(
        grid=(-(-N // plan.rows), plan.splits, 1),
        block=(32 * WARPS, 1, 1),
        args=args,
        shared_mem=plan.shared_bytes,
    )
    if through_memory:
        _kernel("add_splits", dtype, plan, device)(
            grid=(-(-tokens * N // (4 * _ADDED)), 1, 1),
            block=(_ADDED, 1, 1),
            args=[partials, added, y_BN, N, tokens, has_bias],
        )


@cache
def _kernel(name: str, dtype: torch.dtype, plan: Plan, device: torch.device, ranks: int = 0) -> CudaKernel:
    """Of that GPU, which must be the current one."""
    ordered = tuple(map(int, str(torch.version.cuda).split("."))) >= _ORDERED_SINCE
    definitions = plan.definitions() | {"BF16": int(dtype == torch.bfloat16), "ORDERED": int(ordered)}
    shared_bytes = plan.shared_bytes if name == "streamed_product" else 0
    if ranks:
        definitions |= {"RANKS": ranks, "MOST_BLOCKS": _MOST_BLOCKS, "WAIT_SECONDS": WAIT_SECONDS}
    return compiled(source(ranks > 0), name, definitions, shared_bytes)


def source(fused: bool = False) -> str:
    """In CUDA C++; ``fused``: with the sum over ranks."""
    return source_of(*("ptx", "fused_sum", "streamed") if fused else ("ptx", "streamed"))


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
    """CUDA devices of compute capability 8.0 and up, bf16 and fp16, any mask, few tokens. Stores 9/16 of dense bytes.

    More tokens than ``most_tokens`` are multiplied part by part: W is read again for each.
    """

    most_tokens, fuses = MOST_TOKENS, True

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        if torch.version.cuda is None:
            return "is written in CUDA, and this torch was built without it: install a CUDA build of torch"
        return too_old(device)

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if N % 16 or K % 32:
            return f"needs N to be a multiple of 16 and K of 32, got N = {N}, K = {K}"
        return None

    def pack_forward(self, piece: Piece, bias: torch.Tensor | None) -> Packed:
        return PackedStreamed(piece, bias)

    def weight_bytes(self, N: int, K: int, itemsize: int) -> int:
        return N * K // 2 * itemsize + _metadata_bytes(N, K)

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        # The positions in rows, filled up, and in fragments.
        return self.weight_bytes(N, K, itemsize) + 2 * _metadata_bytes(N, K)


def _metadata_bytes(N: int, K: int) -> int:
    return N * -(-K // STEP) * (STEP // 8)
