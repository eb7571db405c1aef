"""S-STE's weights made in one pass over a GPU's memory: dense and packed, and with them their mask and what it changed.

In plain torch that is a mask, its difference from the one before, a threshold, a scale, a rounding and a packing, each
a pass or more, at every step.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.cusparselt_layout import SIDE, check_packable
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.make24 import unavailable
from blockshock.kernels.source import source_of
from blockshock.machine import compiled
from blockshock.machine.cuda_kernel import CudaKernel

_THREADS = 256
_MOST = 1 << 33
"""Numbers: the kernel counts groups in 32 bits."""


class Soft(NamedTuple):
    """Where what is made of a W (N, K) lies.

    Attributes:
        values: β·S(W), (N, K), bf16 or fp16.
        rows: the same packed as cuSPARSELt has it, of N · 9/16 K such numbers.
        mask: what S(W) keeps, as ``make24`` has it, int16 (N/4, K/4).
        flips: the number of elements that this mask keeps and the one before dropped, or the other way round, int32 ().
    """

    values: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor
    flips: torch.Tensor


def takes(w_NK: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a W is made so, with values of that dtype."""
    packable = dtype in (torch.float16, torch.bfloat16) and all(size and size % SIDE == 0 for size in w_NK.shape)
    known = w_NK.dtype in (torch.float32, dtype) and 0 < w_NK.numel() < _MOST
    return packable and known and unavailable(w_NK) is None


def soften24(w_NK: torch.Tensor, scale: torch.Tensor, into: Soft) -> None:
    """Write β·S(W) of S-STE (Hu et al., arXiv 2409.09099), whose threshold is the second smallest size of each four.

    Args:
        w_NK: float32, or of the dtype of the values; N and K multiples of 64. Copied first where its rows do not lie
            densely.
        scale: β, float64 (), on the device.
        into: what is written; of the mask that which was before is read.

    Raises:
        InputError: of W, the scale or what is written.
        KernelUnavailable: W is not on such a GPU.
    """
    check_packable(into.values)
    if reason := unavailable(w_NK):
        raise KernelUnavailable(f"making weights in one pass {reason}")
    if not takes(w_NK, into.values.dtype) or into.values.shape != w_NK.shape or scale.dtype != torch.float64:
        raise InputError(
            f"β·S(W) is made of W like its values, or in float32, and a scale of float64; got {tuple(w_NK.shape)} "
            f"{w_NK.dtype} for {tuple(into.values.shape)} {into.values.dtype}, and a scale of {scale.dtype}"
        )
    w_NK, (N, K) = dense_rows(w_NK), w_NK.shape
    into.flips.zero_()
    with torch.cuda.device(w_NK.device):
        kernel = _kernel(w_NK.dtype == torch.float32, into.values.dtype, w_NK.device)
        kernel((K // SIDE, N // SIDE, 1), (_THREADS, 1, 1), [w_NK, scale, *into, N, K])


@cache
def _kernel(wide: bool, dtype: torch.dtype, device: torch.device) -> CudaKernel:
    """For that GPU, which must be the current one."""
    definitions = {"FP32": int(wide), "BF16": int(dtype == torch.bfloat16)}
    return compiled(source_of("wide", "pairs24", "soft24"), "soft24", definitions)
