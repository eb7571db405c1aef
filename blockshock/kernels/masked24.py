"""What a mask keeps of a weight, made in one pass over a GPU's memory: dense, and packed for both products.

In plain torch that is a choice, a rounding, a packing and a copy of it, at every step of a recipe whose masks last.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.cusparselt_layout import SIDE, check_packable
from blockshock.kernels.layout import dense_rows
from blockshock.kernels.make24 import unavailable
from blockshock.kernels.soft24 import takes
from blockshock.kernels.source import source_of
from blockshock.machine import compiled
from blockshock.machine.cuda_kernel import CudaKernel

_THREADS = 256


class Masked(NamedTuple):
    """Where what is made of a W (N, K) lies.

    Attributes:
        values: what the mask keeps, (N, K), bf16 or fp16.
        rows: the same packed as cuSPARSELt has it, of N · 9/16 K such numbers.
        columns: its transpose, likewise; None where that is not 2:4.
    """

    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor | None = None


def masked24(w_NK: torch.Tensor, mask_NK: torch.Tensor, into: Masked) -> None:
    """Write W where the mask is, and zeros elsewhere.

    Args:
        w_NK: float32, or of the dtype of the values; N and K multiples of 64. Copied first where its rows do not lie
            densely.
        mask_NK: bool, 2:4 along rows, and along columns where these are packed.
        into: what is written.

    Raises:
        InputError: of W, the mask or what is written.
        KernelUnavailable: W is not on such a GPU.
    """
    check_packable(into.values)
    if reason := unavailable(w_NK):
        raise KernelUnavailable(f"making weights in one pass {reason}")
    alike = into.values.shape == w_NK.shape == mask_NK.shape
    if not takes(w_NK, into.values.dtype) or not alike or mask_NK.dtype != torch.bool:
        raise InputError(
            f"weights are made of W like their values, or in float32, and a mask; got {tuple(w_NK.shape)} {w_NK.dtype} "
            f"for {tuple(into.values.shape)} {into.values.dtype}, and a mask {tuple(mask_NK.shape)} {mask_NK.dtype}"
        )
    w_NK, mask_NK, (N, K) = dense_rows(w_NK), dense_rows(mask_NK), w_NK.shape
    tensors = [w_NK, mask_NK, into.values, into.rows, into.rows if into.columns is None else into.columns]
    with torch.cuda.device(w_NK.device):
        kernel = _kernel(w_NK.dtype == torch.float32, into.columns is not None, into.values.dtype, w_NK.device)
        kernel((K // SIDE, N // SIDE, 1), (_THREADS, 1, 1), [*tensors, N, K])


@cache
def _kernel(wide: bool, turns: bool, dtype: torch.dtype, device: torch.device) -> CudaKernel:
    """For that GPU, which must be the current one."""
    definitions = {"FP32": int(wide), "TURNS": int(turns), "BF16": int(dtype == torch.bfloat16)}
    return compiled(source_of("wide", "pairs24", "masked24"), "masked24", definitions)
