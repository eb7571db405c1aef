"""The gradient that comes back through what was made 2:4, dense, in one pass over the memory.

In plain torch that is a mask of a byte a number, spread from its bits, and a pass for each of it, of the slope of the
activation function and of the bias's gradient. Here the gradient and z are read once, and the former is written once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from blockshock.errors import InputError
from blockshock.kernels.blocks24 import check_like, check_takes, launch, places_of
from blockshock.kernels.cusparselt_layout import SIDE
from blockshock.kernels.layout import dense_rows, is_dense
from blockshock.kernels.make24 import Making
from blockshock.kernels.source import source_of
from blockshock.machine import compiled, on_gpu
from blockshock.machine.cuda_kernel import CudaKernel


class Beside(NamedTuple):
    """What was found beside a gradient (R, C), as far as it was asked for.

    Attributes:
        sums: of each column of 64 rows of it, float32 (R/64, C).
        others: of the columns that are wanted, a: (columns, R).
    """

    sums: torch.Tensor | None
    others: torch.Tensor | None


def gradient24_(
    grad_RC: torch.Tensor,
    z_RC: torch.Tensor,
    mask: torch.Tensor,
    making: Making,
    straight: bool = False,
    with_sums: bool = False,
    others: torch.Tensor | None = None,
) -> Beside:
    """Turn the gradient of an a that was made 2:4 of z into that of z, in its place.

    Args:
        grad_RC: like z; its rows lie densely.
        z_RC: fp16 or bf16 on a GPU, R and C multiples of 64; copied first, as the stage ``layout``, where its rows do
            not lie densely.
        mask: what of z stayed, as ``Made.mask``.
        making: that made a of z.
        straight: what the mask drops passes too: with the slope of the function at z, if it came first, else at zero.
        with_sums: add up columns too.
        others: of which columns a is wanted, each once, int64.

    Raises:
        InputError: of the gradient, z or the mask.
        KernelUnavailable: z is not on such a GPU, or the making is none.
    """
    making.check()
    check_takes(z_RC, z_RC)
    check_like("the gradient", grad_RC, "z", z_RC)
    if not is_dense(grad_RC):
        raise InputError("the gradient is written in its place: its rows must lie densely, call contiguous() first")
    (R, C), device = z_RC.shape, z_RC.device
    if (mask.shape, mask.dtype, mask.device) != ((R // 4, C // 4), torch.int16, device):
        raise InputError(
            f"a mask in bits is int16 ({R // 4}, {C // 4}) on {device}, got {mask.dtype} {tuple(mask.shape)} "
            f"on {mask.device}"
        )
    sums = torch.empty(R // SIDE, C, device=device) if with_sums else None
    places, found = (None, None) if others is None else (places_of(others, C), z_RC.new_empty(len(others), R))
    # What is not asked for is neither read nor written: z stands for it.
    asked = (sums, places, found)
    tensors = [grad_RC, dense_rows(z_RC), mask.contiguous(), *(z_RC if tensor is None else tensor for tensor in asked)]
    with on_gpu(device):
        how = making.activation, making.first, straight
        launch(_kernel(*how, with_sums, others is not None, z_RC.dtype, device), z_RC, [*tensors, R, C])
    return Beside(sums, found)


@cache
def _kernel(
    activation: str, first: bool, straight: bool, sums: bool, others: bool, dtype: torch.dtype, device: torch.device
) -> CudaKernel:
    """For that GPU, which must be the current one."""
    source = source_of("wide", "pairs24", "choose24", "gradient24")
    flags = {"FP32": False, "BF16": dtype == torch.bfloat16, "FIRST": first, "STRAIGHT": straight}
    definitions = {name: int(flag) for name, flag in (flags | {"SUMS": sums, "OTHERS": others}).items()}
    return compiled(source, "gradient24", definitions | {"ALONG": "TILES", "ACTIVATION": activation.upper()})
