"""What the kernels that make matrices 2:4 in one pass have in common: what they take, and how they are launched.

A block of threads takes 64 × 64 numbers, a thread one 4 × 4 tile of them.
"""

from __future__ import annotations

from functools import cache

import torch

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.cusparselt_layout import SIDE, check_packable
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.source import source_of
from blockshock.machine import compiled, on_gpu
from blockshock.machine.cuda_kernel import CudaKernel

_THREADS = 256
_MOST = 1 << 33
"""Numbers: the kernels count groups in 32 bits."""


def unavailable(x_RC: torch.Tensor) -> str | None:
    """None, or one sentence that says why a matrix is not made 2:4 in one pass."""
    if not x_RC.is_cuda:
        return f"is for CUDA GPUs, x is on {x_RC.device}"
    if torch.cuda.get_device_capability(x_RC.device) < (8, 0):
        return "is for compute capability 8.0 and up"
    return None


def takes(w_NK: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is made 2:4 in one pass, with values of that dtype."""
    packable = dtype in (torch.float16, torch.bfloat16) and all(size and size % SIDE == 0 for size in w_NK.shape)
    known = w_NK.dtype in (torch.float32, dtype) and 0 < w_NK.numel() < _MOST
    return packable and known and unavailable(w_NK) is None


def check_takes(x_RC: torch.Tensor, made_RC: torch.Tensor) -> None:
    """Raises InputError or KernelUnavailable unless a matrix is made 2:4 in one pass, of which that one is made."""
    check_packable(made_RC)
    if reason := unavailable(x_RC):
        raise KernelUnavailable(f"making 2:4 in one pass {reason}")
    if x_RC.numel() >= _MOST:
        R, C = made_RC.shape
        raise InputError(f"what is made 2:4 in one pass is of less than {_MOST} numbers, got {R} × {C}: cut it in rows")


def check_like(name: str, one_RC: torch.Tensor, other: str, other_RC: torch.Tensor) -> None:
    """Raises InputError unless two matrices that are read side by side are alike; they are called by their names."""
    if (one_RC.shape, one_RC.dtype, one_RC.device) != (other_RC.shape, other_RC.dtype, other_RC.device):
        found, wanted = (f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (one_RC, other_RC))
        raise InputError(f"{name} must be like {other}, {wanted}, got {found}")


def places_of(others: torch.Tensor, C: int) -> torch.Tensor:
    """Of each of so many columns which of the others it is, int32 (C,); −1 of none."""
    found = torch.full((C,), -1, dtype=torch.int32, device=others.device)
    return found.index_copy_(0, others, torch.arange(len(others), dtype=torch.int32, device=others.device))


def launch(kernel: CudaKernel, x_RC: torch.Tensor, args: list[torch.Tensor | int]) -> None:
    """Start a kernel on all blocks of a matrix, on whose GPU it is, which must be the current one."""
    R, C = x_RC.shape
    kernel((C // SIDE, R // SIDE, 1), (_THREADS, 1, 1), args)


def launch_on_weight(
    name: str, w_NK: torch.Tensor, values: torch.Tensor, others: list[torch.Tensor], *flags: tuple[str, int]
) -> None:
    """Start the kernel of a file on a weight, copied first where its rows do not lie densely: it takes W, others, N, K.

    Args:
        values: of the dtype that is made of W.
        flags: macros and what they are.
    """
    with on_gpu(w_NK.device):
        kernel = _kernel(name, w_NK.dtype == torch.float32, values.dtype, w_NK.device, *flags)
        launch(kernel, w_NK, [dense_rows(w_NK), *others, *w_NK.shape])


@cache
def _kernel(name: str, wide: bool, dtype: torch.dtype, device: torch.device, *flags: tuple[str, int]) -> CudaKernel:
    """For that GPU, which must be the current one."""
    definitions = {"FP32": int(wide), "BF16": int(dtype == torch.bfloat16)} | dict(flags)
    return compiled(source_of("wide", "pairs24", name), name, definitions)
