"""What formats of eight bits add to a product, in one launch each on a GPU: x is quantised, and sums are scaled.

In plain torch that is five passes over x and up to three over y, more than most products take.
"""

from __future__ import annotations

import struct

import torch

from blockshock.kernels.formats.orders import Order
from blockshock.kernels.fours import DTYPES, kernel_of_fours
from blockshock.machine import on_gpu

STORED = {torch.int8: (0, (8, 0)), torch.float8_e4m3fn: (1, (8, 9))}
"""What is stored: its number, and the compute capability that has the instructions."""
SUMS = {torch.int32: 0, torch.float32: 1, torch.bfloat16: 2}
_WARP, _BLOCK, _SCALING = 32, 512, 256
"""Threads: the fewest and the most that a row is quantised by, and those that scale in a block."""
_HELD, _BLOCK_ROWS = 8, 8
"""Fours of a row that a thread of ``quantise.cu`` keeps, and rows of a block there, where a row has one warp."""
_FULL = 1 << 18
"""Threads that fill a GPU."""
_MANY, _ROWS = 1 << 20, 8
"""So many sums from on, a thread scales those of several rows; of fewer, a GPU would idle."""
_MOST_ROWS, _MOST_ROW = 1 << 31, 1 << 31
_LONGEST = 1 << 16
"""Numbers of a row that one block reads by itself: of a matrix that is one row, as for one scale, a GPU would idle."""


def quantises(rows_RK: torch.Tensor, stored: torch.dtype) -> bool:
    """Whether a matrix is quantised here: on a GPU, as its rows lie, and by no compiler."""
    if torch.compiler.is_compiling() or not rows_RK.is_cuda:
        return False
    R, K = rows_RK.shape
    fits = rows_RK.dtype in DTYPES and stored in STORED and R < _MOST_ROWS and K <= _LONGEST and _in_fours(rows_RK)
    return fits and torch.cuda.get_device_capability(rows_RK.device) >= STORED[stored][1]


def _in_fours(matrix: torch.Tensor) -> bool:
    """Whether each row of a matrix on a GPU can be read four numbers at a time."""
    if matrix.requires_grad or not matrix.numel():
        return False
    bytes_of_four, apart = 4 * matrix.itemsize, matrix.stride(0) if len(matrix) > 1 else matrix.shape[1]
    lies = matrix.stride(1) == 1 and matrix.shape[1] % 4 == 0 and apart % 4 == 0 and 0 < apart < _MOST_ROW
    return lies and matrix.data_ptr() % bytes_of_four == 0


def _fours_apart(matrix: torch.Tensor) -> int:
    return (matrix.stride(0) if len(matrix) > 1 else matrix.shape[1]) // 4


def quantised(
    rows_RK: torch.Tensor, largest: float, stored: torch.dtype, order: Order = Order.ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is stored of a matrix (R, K) that is read here, and its scales, float32 (R, 1).

    Args:
        order: in which it lies. What fills up rows is not written.
    """
    R, K = rows_RK.shape
    q_RK = torch.empty(order.shape(R, K), dtype=stored, device=rows_RK.device)
    scale_R1 = torch.empty(R, 1, device=rows_RK.device)
    (reciprocal,) = struct.unpack("i", struct.pack("f", 1 / largest))
    with on_gpu(rows_RK.device):
        threads = _row_threads(R, K)
        rows = _BLOCK_ROWS if threads == _WARP else 1
        flags = ("FP8", STORED[stored][0]), ("ORDER", order.value), ("ROW_THREADS", threads)
        kernel = kernel_of_fours("quantise", rows_RK.dtype, rows_RK.device, *flags)
        arguments = [rows_RK, q_RK, scale_R1, R, K, _fours_apart(rows_RK), reciprocal]
        kernel((-(-R // rows), 1, 1), (rows * threads, 1, 1), arguments)
    return q_RK, scale_R1


def _row_threads(R: int, K: int) -> int:
    """Threads a row: a power of two, the least by which each keeps what it reads and the GPU is full, if it can be."""
    threads = _WARP
    while threads < min(K // 4, _BLOCK) and (4 * _HELD * threads < K or R * threads < _FULL):
        threads *= 2
    return threads


def scales(sums_BN: torch.Tensor, scale_N: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """Whether sums are scaled here."""
    if torch.compiler.is_compiling() or not sums_BN.is_cuda:
        return False
    fits = sums_BN.dtype in SUMS and dtype in DTYPES and sums_BN.numel() < 4 * _SCALING * _MOST_ROWS
    with_bias = bias is None or (bias.dtype == dtype and bias.is_contiguous() and bias.data_ptr() % 16 == 0)
    with_scales = scale_N is None or (scale_N.is_contiguous() and scale_N.data_ptr() % 16 == 0)
    return fits and with_bias and with_scales and _in_fours(sums_BN)


def descaled(
    sums_BN: torch.Tensor,
    scale_B1: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Sums that are scaled here, as ``formats.descaled`` says."""
    B, N = sums_BN.shape
    y_BN = torch.empty(B, N, dtype=dtype, device=sums_BN.device)
    rows = _ROWS if B * N >= _MANY else 1
    flags = ("FROM", SUMS[sums_BN.dtype]), ("CHANNELS", int(scale_N is not None)), ("BIASED", int(bias is not None))
    # What is not there is not read: y stands for it.
    tensors = [sums_BN, scale_B1.contiguous(), *(y_BN if one is None else one for one in (scale_N, bias)), y_BN]
    with on_gpu(sums_BN.device):
        kernel = kernel_of_fours("descale", dtype, sums_BN.device, *flags, ("ROWS", rows))
        across = _across(N)
        down = _SCALING // across
        grid = (-(-B // (rows * down)), -(-N // (4 * across)), 1)
        kernel(grid, (across, down, 1), [*tensors, B, N, _fours_apart(sums_BN)])
    return y_BN


def _across(N: int) -> int:
    """Threads of a block along a row: as many as can be, if at most an eighth of them idle, and a warp at least."""
    threads = _SCALING
    while threads > _WARP and 7 * threads * -(-N // (4 * threads)) > 8 * (N // 4):
        threads //= 2
    return threads
