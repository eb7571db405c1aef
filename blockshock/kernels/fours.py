"""Which two of each four of a row stay, or what S-STE's threshold leaves of them, in one pass over a GPU's memory.

In plain torch each is a dozen passes or more, at every step of a recipe whose masks change.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from blockshock.machine import compiled
from blockshock.machine.cuda_kernel import CudaKernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_THREADS = 256
_MOST_GROUPS = 1 << 31


def takes(x: torch.Tensor) -> bool:
    """Whether the groups of four of its last dimension are read here: on a GPU, as they lie, and by no compiler."""
    if not x.is_cuda or x.dtype not in DTYPES or torch.compiler.is_compiling():
        return False
    lies = x.is_contiguous() and x.data_ptr() % (4 * x.itemsize) == 0
    return lies and 0 < x.numel() < 4 * _MOST_GROUPS and x.shape[-1] % 4 == 0


def two_largest(x: torch.Tensor, signed: bool = False) -> torch.Tensor:
    """The mask of the two of each four with the largest \\|x\\|, or x; among equals the first, NaN counts as inf."""
    found = torch.empty_like(x, dtype=torch.bool)
    _launch(x, found, SOFT=0, SIGNED=int(signed))
    return found


def above_threshold(x: torch.Tensor) -> torch.Tensor:
    """sign(x)·max(\\|x\\| − t, 0), with t the second smallest \\|x\\| of each four; zeros have no sign."""
    found = torch.empty_like(x)
    _launch(x, found, SOFT=1, SIGNED=0)
    return found


def _launch(x: torch.Tensor, found: torch.Tensor, **flags: int) -> None:
    groups = x.numel() // 4
    with torch.cuda.device(x.device):
        kernel = _kernel(x.dtype, x.device, *flags.items())
        kernel((-(-groups // _THREADS), 1, 1), (_THREADS, 1, 1), [x, found, groups])


@cache
def _kernel(dtype: torch.dtype, device: torch.device, *flags: tuple[str, int]) -> CudaKernel:
    """For that GPU, which must be the current one."""
    return compiled(source_behind_wide("fours"), "fours", of_dtype(dtype) | dict(flags))


def source_behind_wide(name: str) -> str:
    """The source of a kernel that takes four numbers of any dtype at once."""
    return "\n".join((Path(__file__).parent / f"{file}.cu").read_text(encoding="utf-8") for file in ("wide", name))


def of_dtype(dtype: torch.dtype) -> dict[str, object]:
    """What is set for that source."""
    return {"FP32": int(dtype == torch.float32), "BF16": int(dtype == torch.bfloat16)}
