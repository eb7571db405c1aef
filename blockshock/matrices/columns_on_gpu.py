"""Two columns of each four out of a matrix, and two halves of such columns back into one: on a GPU, one launch each.

torch copies them pair by pair, far below the rate of memory. Here a thread moves eight columns, in words of 8 and 16
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import torch
from torch.autograd.graph import increment_version

from blockshock.machine import CudaKernel, compiled, on_gpu

DTYPES = (torch.bfloat16, torch.float16)
_THREADS, _WARP = 256, 32
_COLUMNS = 8
"""Of a thread: a word of 16 bytes of a matrix, one of 8 of what a half has of it."""
_MANY, _ROWS = 1 << 18, 4
"""So many threads from on, each takes several rows; of fewer, a GPU would idle."""
_MOST = 1 << 30

_CUDA = r"""
// Set by whoever compiles it: ROWS (of a thread); LOW, HIGH: which bytes of two words, as __byte_perm takes them.
// A block has blockDim.x threads along a row, blockDim.y down the columns. Nothing is __restrict__: no load is to be
// moved before the wait. `apart`: words from one row to the next.
#define COLUMN (blockIdx.y * blockDim.x + threadIdx.x)
#define FIRST ((int)(blockIdx.x * blockDim.y + threadIdx.y) * ROWS)
#define AT(row, apart) ((long long)min(row, B - 1) * (apart) + COLUMN)

extern "C" __global__ void take_columns(const uint4* whole, uint2* half, int B, int across, int apart) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");  // launched early: what makes the matrix may still be at work
#endif
    if (COLUMN >= across || FIRST >= B) return;
    uint4 read[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) read[r] = whole[AT(FIRST + r, apart)];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (FIRST + r < B)
            half[AT(FIRST + r, across)] = make_uint2(__byte_perm(read[r].x, read[r].y, LOW),
                                                     __byte_perm(read[r].z, read[r].w, LOW));
}

extern "C" __global__ void put_columns(const uint2* one, const uint2* other, uint4* whole, int B, int across,
                                       int apart_one, int apart_other, int apart) {
    if (COLUMN >= across || FIRST >= B) return;
    uint2 a[ROWS], b[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        a[r] = one[AT(FIRST + r, apart_one)];
        b[r] = other[AT(FIRST + r, apart_other)];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (FIRST + r < B)
            whole[AT(FIRST + r, apart)] =
                make_uint4(__byte_perm(a[r].x, b[r].x, LOW), __byte_perm(a[r].x, b[r].x, HIGH),
                           __byte_perm(a[r].y, b[r].y, LOW), __byte_perm(a[r].y, b[r].y, HIGH));
}
"""


def sees(x: torch.Tensor) -> bool:
    """Whether such numbers are moved here at all: 16 bits each, on a GPU, by no compiler."""
    return x.is_cuda and x.dtype in DTYPES and not torch.compiler.is_compiling()


def takes(positions: Sequence[int], width: int, x_BK: torch.Tensor) -> bool:
    """Whether those positions of each ``width`` columns are taken here: two of four, of rows that lie in words, of what
    nothing differentiates."""
    if not sees(x_BK) or (len(positions), width) != (2, 4) or not _lies(x_BK, 2 * _COLUMNS):
        return False
    return not (x_BK.requires_grad and torch.is_grad_enabled())


def taken(positions: tuple[int, ...], x_BK: torch.Tensor) -> torch.Tensor:
    """Those columns of an x that is taken here, (B, K/2), contiguous.

    The launch may overlap the tail of the kernel that makes x (PTX ISA, ``griddepcontrol``).
    """
    (B, K), device = x_BK.shape, x_BK.device
    half_BJ, across = torch.empty(B, K // 2, dtype=x_BK.dtype, device=device), K // _COLUMNS
    with on_gpu(device):  # whose current stream the launch takes
        launch = _launch_of("take_columns", positions, B, across, device)
        launch([x_BK, half_BJ, B, across, _apart(x_BK, _COLUMNS)])
    return half_BJ


def puts(one_BJ: torch.Tensor, other_BJ: torch.Tensor, whole_BK: torch.Tensor) -> bool:
    """Whether two halves (B, K/2) of the columns are put together here: of rows that lie in words."""
    halves, shape = (one_BJ, other_BJ), (whole_BK.shape[0], whole_BK.shape[1] // 2)
    if not sees(whole_BK) or any((half.dtype, half.shape) != (whole_BK.dtype, shape) for half in halves):
        return False
    return _lies(whole_BK, 2 * _COLUMNS) and all(_lies(half, _COLUMNS) for half in halves)


def put(positions: tuple[int, ...], one_BJ: torch.Tensor, other_BJ: torch.Tensor, whole_BK: torch.Tensor) -> None:
    """Write the one half to those two positions of each four columns, the other to the others, of what is put here."""
    (B, K), device = whole_BK.shape, whole_BK.device
    across = K // _COLUMNS
    apart = [_apart(one_BJ, _COLUMNS // 2), _apart(other_BJ, _COLUMNS // 2), _apart(whole_BK, _COLUMNS)]
    with on_gpu(device):
        launch = _launch_of("put_columns", positions, B, across, device)
        launch([one_BJ, other_BJ, whole_BK, B, across, *apart])
    if not whole_BK.is_inference():
        increment_version(whole_BK)  # as torch's writes do


def _lies(x_BK: torch.Tensor, word: int) -> bool:
    """Whether its rows lie in memory as words of so many bytes."""
    (B, K), apart, numbers = x_BK.shape, _apart(x_BK, 1), word // x_BK.itemsize
    in_words = x_BK.stride(1) == 1 and apart % numbers == 0 and x_BK.data_ptr() % word == 0
    return in_words and 0 < B < _MOST and 0 < apart < _MOST and K > 0 and K % numbers == 0


def _apart(x_BK: torch.Tensor, numbers: int) -> int:
    """From one row to the next, in words of so many numbers."""
    return (x_BK.stride(0) if x_BK.shape[0] > 1 else x_BK.shape[1]) // numbers


def taking(positions: Sequence[int]) -> int:
    """The bytes of four numbers that are taken, for ``__byte_perm``."""
    return _selector([2 * position + byte for position in positions for byte in (0, 1)])


def putting(positions: Sequence[int]) -> tuple[int, int]:
    """Of two numbers of the one half and two of the other, the bytes of the first two columns and of the last two."""
    order = [*positions, *(column for column in range(4) if column not in positions)]
    columns = [2 * order.index(column) + byte for column in range(4) for byte in (0, 1)]
    return _selector(columns[:4]), _selector(columns[4:])


def _selector(places: Sequence[int]) -> int:
    """As ``__byte_perm`` takes it: the first in the lowest half byte."""
    return sum(byte << (4 * place) for place, byte in enumerate(places))


@lru_cache(1 << 10)
def _launch_of(
    name: str, positions: tuple[int, ...], B: int, across: int, device: torch.device
) -> Callable[[list[torch.Tensor | int]], None]:
    """Launches a kernel over so many rows and words, on that GPU, which must be the current one."""
    rows, wide, takes_one = _ROWS if B * across >= _MANY else 1, _THREADS, name == "take_columns"
    while wide > _WARP and wide >= 2 * across:
        wide //= 2
    down = _THREADS // wide
    low, high = (taking(positions), 0) if takes_one else putting(positions)
    kernel = _kernel(name, rows, low, high, device)
    # Only one that waits for what is before it may begin early.
    early = takes_one and torch.cuda.get_device_capability(device)[0] >= 9
    return partial(kernel, (-(-B // (rows * down)), -(-across // wide), 1), (wide, down, 1), early=early)


@cache
def _kernel(name: str, rows: int, low: int, high: int, device: torch.device) -> CudaKernel:
    return compiled(_CUDA, name, {"LOW": f"0x{low:04x}", "HIGH": f"0x{high:04x}", "ROWS": rows})
