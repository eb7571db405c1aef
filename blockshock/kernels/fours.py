"""Which two of each four of a row stay, what S-STE's threshold leaves of them, and decay of what a mask drops, or zeros
in its place: each in one pass over a GPU's memory.

In plain torch the first two are a dozen passes or more, at every step of a recipe whose masks change.
"""

from __future__ import annotations

import struct
from functools import cache

import torch

from blockshock.kernels.source import source_of
from blockshock.machine import compiled, on_gpu
from blockshock.machine.cuda_kernel import CudaKernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_THREADS = 256
_MOST_GROUPS = 1 << 31
_WIDEST = 16
"""Bytes of the widest load that a thread has."""


def takes(x: torch.Tensor) -> bool:
    """Whether the groups of four of its last dimension are read here: on a GPU, as they lie, and by no compiler."""
    if not x.is_cuda or x.dtype not in DTYPES or torch.compiler.is_compiling():
        return False
    lies = x.is_contiguous() and x.data_ptr() % (4 * x.itemsize) == 0
    return lies and 0 < x.numel() < 4 * _MOST_GROUPS and x.ndim > 0 and x.shape[-1] % 4 == 0


def two_largest(x: torch.Tensor, signed: bool = False) -> torch.Tensor:
    """The mask of the two of each four with the largest \\|x\\|, or x; among equals the first, NaN counts as inf."""
    found = torch.empty_like(x, dtype=torch.bool)
    _launch(x, found, SOFT=0, SIGNED=int(signed), BITS=0)
    return found


def two_largest_bits(x_RC: torch.Tensor) -> torch.Tensor:
    """The same by \\|x\\|, of a matrix whose R is a multiple of four: as bits of tiles, int16 (R/4, C/4)."""
    R, C = x_RC.shape
    found = torch.empty(R // 4, C // 4, dtype=torch.int16, device=x_RC.device)
    _launch(x_RC, found, SOFT=0, SIGNED=0, BITS=1)
    return found


def above_threshold(x: torch.Tensor) -> torch.Tensor:
    """sign(x)·max(\\|x\\| − t, 0), with t the second smallest \\|x\\| of each four; zeros have no sign."""
    found = torch.empty_like(x)
    _launch(x, found, SOFT=1, SIGNED=0, BITS=0)
    return found


def decay_dropped_(grad: torch.Tensor, w: torch.Tensor, mask: torch.Tensor, decay: float) -> torch.Tensor:
    """grad += decay·(1 − mask)⊙w, in place; both are of one shape and dtype, and taken here.

    Args:
        mask: bool, of their shape; or of a matrix (R, C) as bits, int16 (R/4, C/4). Contiguous, and aligned as four
            bytes are.
    """
    (decay_bits,) = struct.unpack("i", struct.pack("f", decay))
    return _change_dropped_(grad, w, mask, decay_bits, ZERO=0)


def zero_dropped_(x_RC: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """x = 0 where a mask drops it, in place, of an x that is taken here and a mask as bits, as above."""
    return _change_dropped_(x_RC, x_RC, bits, 0, ZERO=1)


def _change_dropped_(
    x: torch.Tensor, w: torch.Tensor, mask: torch.Tensor, decay_bits: int, **flags: int
) -> torch.Tensor:
    in_bits, C = mask.dtype == torch.int16, x.shape[-1]
    aligned = all(tensor.data_ptr() % _WIDEST == 0 for tensor in (x, w)) and mask.data_ptr() % 8 == 0
    fours = _WIDEST // (4 * x.itemsize)  # as many as one load has
    fours = fours if aligned and C % (4 * fours) == 0 else 1
    across, threads = C // (4 * fours), x.numel() // (4 * fours * (4 if in_bits else 1))
    flags |= {"BITS": int(in_bits), "FOURS": fours}
    with on_gpu(x.device):
        kernel = kernel_of_fours("decay", x.dtype, x.device, *flags.items())
        kernel((-(-threads // _THREADS), 1, 1), (_THREADS, 1, 1), [x, w, mask, across, threads, decay_bits])
    if not x.is_inference():  # which has no version
        torch.autograd.graph.increment_version(x)
    return x


def _launch(x: torch.Tensor, found: torch.Tensor, **flags: int) -> None:
    threads = x.numel() // (16 if flags["BITS"] else 4)
    with on_gpu(x.device):
        kernel = kernel_of_fours("fours", x.dtype, x.device, *flags.items())
        kernel((-(-threads // _THREADS), 1, 1), (_THREADS, 1, 1), [x, found, x.shape[-1] // 4, threads])


@cache
def kernel_of_fours(name: str, dtype: torch.dtype, device: torch.device, *flags: tuple[str, int]) -> CudaKernel:
    """One that takes four numbers of a dtype at once, for that GPU, which must be the current one."""
    of_dtype = {"FP32": int(dtype == torch.float32), "BF16": int(dtype == torch.bfloat16)}
    return compiled(source_of("wide", name), name, of_dtype | dict(flags))
