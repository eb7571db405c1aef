"""Kept values out of dense rows and back, on a GPU, at the rate of its memory.

torch's gather and scatter take 64-bit indices, eight bytes for each value that moves, made of the packed positions each
time: several times what the bytes themselves take. Here a thread takes one byte of positions, which is two groups:
eight dense values and four kept ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.autograd.graph import increment_version

from blockshock.machine import compiled, on_gpu

_THREADS = 256
_ALIGNED = 16
"""Bytes of a load."""

_CUDA = r"""
// Two groups of four: 16-bit values in one load, 32-bit values in two.
#if BYTES == 2
struct Dense { uint4 both; };
struct Kept { uint2 pairs; };

__device__ unsigned value_at(unsigned low, unsigned high, unsigned place) {
    return ((place & 2 ? high : low) >> (16 * (place & 1))) & 0xffff;
}
__device__ unsigned pair_of(unsigned low, unsigned high, unsigned places) {
    return value_at(low, high, places & 3) | (value_at(low, high, places >> 2) << 16);
}
__device__ Kept kept_of(Dense dense, unsigned places) {
    return {make_uint2(pair_of(dense.both.x, dense.both.y, places & 15),
                       pair_of(dense.both.z, dense.both.w, places >> 4))};
}
__device__ unsigned placed(unsigned pair, unsigned places, unsigned word) {
    unsigned low = places & 3, high = places >> 2, first = pair & 0xffff, second = pair >> 16;
    return (low >> 1 == word ? first << (16 * (low & 1)) : 0) | (high >> 1 == word ? second << (16 * (high & 1)) : 0);
}
__device__ Dense dense_of(Kept kept, unsigned places) {
    unsigned one = places & 15, two = places >> 4;
    return {make_uint4(placed(kept.pairs.x, one, 0), placed(kept.pairs.x, one, 1),
                       placed(kept.pairs.y, two, 0), placed(kept.pairs.y, two, 1))};
}
#else
struct Dense { uint4 one, two; };
struct Kept { uint4 values; };

__device__ unsigned value_at(uint4 group, unsigned place) {
    return place & 2 ? (place & 1 ? group.w : group.z) : (place & 1 ? group.y : group.x);
}
__device__ Kept kept_of(Dense dense, unsigned places) {
    return {make_uint4(value_at(dense.one, places & 3), value_at(dense.one, places >> 2 & 3),
                       value_at(dense.two, places >> 4 & 3), value_at(dense.two, places >> 6))};
}
__device__ unsigned placed(unsigned low, unsigned high, unsigned places, unsigned column) {
    return (places & 3) == column ? low : (places >> 2) == column ? high : 0;
}
__device__ uint4 group_of(unsigned low, unsigned high, unsigned places) {
    return make_uint4(placed(low, high, places, 0), placed(low, high, places, 1),
                      placed(low, high, places, 2), placed(low, high, places, 3));
}
__device__ Dense dense_of(Kept kept, unsigned places) {
    return {group_of(kept.values.x, kept.values.y, places & 15),
            group_of(kept.values.z, kept.values.w, places >> 4)};
}
#endif

extern "C" __global__ void gather_values(const Dense* dense, const unsigned char* positions, Kept* kept, int pairs) {
    int pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair < pairs) kept[pair] = kept_of(dense[pair], positions[pair]);
}

extern "C" __global__ void scatter_values(const Kept* kept, const unsigned char* positions, Dense* dense, int pairs) {
    int pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair < pairs) dense[pair] = dense_of(kept[pair], positions[pair]);
}
"""


def fits(K: int, positions: torch.Tensor, read: torch.Tensor, written: torch.Tensor | None = None) -> bool:
    """Whether the kernels can move values of rows of K: 2 or 4 bytes each, positions that fill whole bytes, all of it
    dense in memory, and nothing that a compiler would have to see."""
    tensors = [read, *([] if written is None else [written])]
    return (
        read.is_cuda
        and not torch.compiler.is_compiling()
        and read.itemsize in (2, 4)
        and K % 8 == 0
        and 0 < positions.numel() < 2**31
        and all(tensor.device == read.device and tensor.is_contiguous() for tensor in (*tensors, positions))
        and all(tensor.data_ptr() % _ALIGNED == 0 for tensor in tensors)
    )


def gather(dense_RK: torch.Tensor, positions: torch.Tensor, out_RJ: torch.Tensor | None = None) -> torch.Tensor:
    """The kept values (R, K/2) of dense rows, bit for bit, in ``out_RJ``; of what ``fits``."""
    kept_RJ = dense_RK.new_empty(len(dense_RK), dense_RK.shape[1] // 2) if out_RJ is None else out_RJ
    _launch("gather_values", dense_RK, positions, kept_RJ)
    return kept_RJ


def scatter(kept_RJ: torch.Tensor, positions: torch.Tensor, out_RK: torch.Tensor | None = None) -> torch.Tensor:
    """The dense rows (R, K) of kept values, zeros elsewhere, bit for bit, in ``out_RK``; of what ``fits``."""
    dense_RK = kept_RJ.new_empty(len(kept_RJ), 2 * kept_RJ.shape[1]) if out_RK is None else out_RK
    _launch("scatter_values", kept_RJ, positions, dense_RK)
    return dense_RK


@cache
def _compiled(device: torch.device, name: str, itemsize: int) -> Any:
    """The kernel for that GPU, which must be the current one, through NVRTC: it is loaded into one GPU's context."""
    return compiled(_CUDA, name, {"BYTES": itemsize})


def _launch(name: str, read: torch.Tensor, positions: torch.Tensor, written: torch.Tensor) -> None:
    pairs = positions.numel()
    with on_gpu(read.device):  # whose current stream the launch takes
        kernel = _compiled(read.device, name, read.itemsize)
        kernel(grid=(-(-pairs // _THREADS), 1, 1), block=(_THREADS, 1, 1), args=[read, positions, written, pairs])
    if not written.is_inference():
        increment_version(written)  # as torch's writes do
