"""Kept values of Wᵀ from those of W, in place, for transposable masks: what a refresh does instead of compressing.

In each 4 × 4 tile of a transposable mask the eight kept values of four rows are the eight of four columns, in another
order. So new values reach a packing of Wᵀ by a permutation within each tile and a transposition of the tiles. On a
GPU one pass over the memory does both, and casts and writes the packing of W on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import increment_version

from blockshock.kernels.layout import dense_rows, is_dense
from blockshock.machine import compiled, on_gpu
from blockshock.matrices import Mask, row_blocks, transposable_tiles

_BITS = torch.tensor([1 << bit for bit in range(16)])
_TILES = 32
"""Tiles along each side of what one thread block moves; the CUDA source below counts on it."""


def _sources(tile: list[list[bool]]) -> list[int]:
    """Of each kept value of the transposed tile, row by row, its index among those of the tile."""
    return [2 * row + sum(tile[row][:column]) for column in range(4) for row in range(4) if tile[row][column]]


@cache
def _table() -> tuple[torch.Tensor, torch.Tensor]:
    """The 90 tiles as 16-bit words, ascending, and the sources (90, 8) of each."""
    tiles = transposable_tiles(torch.device("cpu"))
    words, order = (tiles.flatten(1) * _BITS).sum(1).sort()
    return words, torch.tensor([_sources(tile) for tile in tiles[order].tolist()])


class TileOrder(nn.Module):
    """Of a transposable mask (N, K), where the kept values of W lie in those of Wᵀ.

    Holds one byte a tile, or nothing of size where a single 4 × 4 tile repeats.
    """

    kinds: torch.Tensor
    sources: torch.Tensor
    codes: torch.Tensor

    def __init__(self, mask: Mask, device: torch.device) -> None:
        super().__init__()
        self.N, self.K = mask.N, mask.K
        words, sources = _table()
        one = _repeats_one_tile(mask)
        blocks = [(0, 4)] if one else list(row_blocks(mask.N, 8 * mask.K))
        kinds = [_kinds(mask.rows(start, stop), words.to(device)) for start, stop in blocks]
        self._hold("kinds", kinds[0][:, :1].clone() if one else torch.cat(kinds))
        self._hold("sources", sources.to(device, copy=True))
        # Eight bits a column of the tile: row and place of its first kept value, row and place of its second.
        codes = [sum((s >> 1 | (s & 1) << 2) << 4 * i for i, s in enumerate(row)) for row in sources.tolist()]
        chosen = [codes[int(self.kinds)]] if one else codes
        self._hold("codes", torch.tensor(chosen, dtype=torch.int32, device=device))

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @staticmethod
    def held_bytes(N: int, K: int, mask: Mask | None) -> int:
        """Bytes that this holds for such a mask; at most, if it is not known."""
        words, sources = _table()
        kinds, codes = (1, 1) if mask is not None and _repeats_one_tile(mask) else (N * K // 16, len(words))
        return kinds + 4 * codes + sources.nbytes

    @property
    def repeats(self) -> bool:
        """Whether a single tile repeats."""
        return self.kinds.numel() == 1

    def transpose(self, values_NJ: torch.Tensor, out_KM: torch.Tensor, rows_NJ: torch.Tensor | None = None) -> None:
        """Write the kept values of Wᵀ.

        Args:
            values_NJ: kept values of W, (N, K/2), of any dtype.
            out_KM: takes those of Wᵀ, (K, N/2).
            rows_NJ: takes ``values_NJ`` itself, cast to the dtype of ``out_KM``.
        """
        written = [out_KM] if rows_NJ is None else [out_KM, rows_NJ]
        fits = out_KM.itemsize == 2 and values_NJ.dtype in (torch.float32, out_KM.dtype)
        if values_NJ.is_cuda and fits and all(map(is_dense, written)):
            _launch(self, dense_rows(values_NJ), out_KM, rows_NJ)
            increment_version([tensor for tensor in written if not tensor.is_inference()])  # as torch's writes do
            return
        cast_NJ = values_NJ.to(out_KM.dtype)
        tiles = cast_NJ.unflatten(1, (-1, 2)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
        turned = tiles.gather(2, self.sources[self.kinds.long()].expand(*tiles.shape[:2], 8)).unflatten(2, (4, 2))
        out_KM.unflatten(1, (-1, 2)).unflatten(0, (-1, 4)).copy_(turned.permute(1, 2, 0, 3))
        if rows_NJ is not None:
            rows_NJ.copy_(cast_NJ)


def _repeats_one_tile(mask: Mask) -> bool:
    return mask.tile is not None and tuple(mask.tile.shape) == (4, 4)


def _kinds(mask_RK: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Of each tile its index in the table, uint8 (R/4, K/4)."""
    tiles = mask_RK.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
    return torch.searchsorted(words, (tiles * _BITS.to(mask_RK.device)).sum(2)).to(torch.uint8)


_CUDA = r"""
__device__ unsigned pair_at(const source_t* values) {
#if CASTS
    float2 pair = *reinterpret_cast<const float2*>(values);
    unsigned short low, high;
    asm("cvt.rn." TARGET ".f32 %0, %1;" : "=h"(low) : "f"(pair.x));
    asm("cvt.rn." TARGET ".f32 %0, %1;" : "=h"(high) : "f"(pair.y));
    return low | (unsigned(high) << 16);
#else
    return *reinterpret_cast<const unsigned*>(values);
#endif
}

// A block moves 32 x 32 tiles. Rows come in and go out in order; shared memory, padded, holds the turn.
extern "C" __global__ void transpose_values(const source_t* values, unsigned* rows_out, unsigned* columns_out,
                                            const int* codes, const unsigned char* kinds, int N, int K) {
    __shared__ unsigned pairs[4][32][33];
    __shared__ unsigned code[32][33];
    const int lane = threadIdx.x, bands = N / 4, groups = K / 4;
    const int band0 = blockIdx.y * 32, group0 = blockIdx.x * 32;
    if (group0 + lane < groups) {
        for (int row = threadIdx.y; row < 128; row += blockDim.y)
            if (4 * band0 + row < N) {
                long long at = (long long)(4 * band0 + row) * groups + group0 + lane;
                unsigned pair = pair_at(values + 2 * at);
                if (WRITES_ROWS) rows_out[at] = pair;
                pairs[row % 4][lane][row / 4] = pair;
            }
        for (int band = threadIdx.y; band < 32; band += blockDim.y)
            if (band0 + band < bands)
                code[lane][band] = codes[REPEATS ? 0 : kinds[(long long)(band0 + band) * groups + group0 + lane]];
    }
    __syncthreads();
    if (band0 + lane < bands)
        for (int column = threadIdx.y; column < 128; column += blockDim.y)
            if (4 * group0 + column < K) {
                int group = column / 4;
                unsigned from = code[group][lane] >> (8 * (column % 4));
                unsigned first = pairs[from & 3][group][lane] >> (16 * (from >> 2 & 1));
                unsigned second = pairs[from >> 4 & 3][group][lane] >> (16 * (from >> 6 & 1));
                columns_out[(long long)(4 * group0 + column) * bands + band0 + lane] =
                    (first & 0xffff) | (second << 16);
            }
}
"""


@cache
def _compiled(device: torch.device, casts: bool, target: str, writes_rows: bool, repeats: bool) -> Any:
    """The kernel for that GPU, which must be the current one, through NVRTC: it is loaded into one GPU's context."""
    flags = {"CASTS": int(casts), "WRITES_ROWS": int(writes_rows), "REPEATS": int(repeats), "TARGET": f'"{target}"'}
    return compiled(_CUDA, "transpose_values", flags | {"source_t": "float" if casts else "unsigned short"})


def _launch(order: TileOrder, values_NJ: torch.Tensor, out_KM: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
    target = "bf16" if out_KM.dtype == torch.bfloat16 else "f16"
    casts = values_NJ.dtype != out_KM.dtype
    grid = (-(-order.K // (4 * _TILES)), -(-order.N // (4 * _TILES)), 1)
    rows = out_KM if rows_NJ is None else rows_NJ  # never written through where there are none
    args = [values_NJ, rows, out_KM, order.codes, order.kinds, order.N, order.K]
    with on_gpu(values_NJ.device):  # whose current stream the launch takes
        kernel = _compiled(values_NJ.device, casts, target, rows_NJ is not None, order.repeats)
        kernel(grid=grid, block=(32, 8, 1), args=args)
