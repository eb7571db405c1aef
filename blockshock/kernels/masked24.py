"""What a mask keeps of a weight, made in one pass over a GPU's memory: dense, and packed for both products.

In plain torch that is a choice, a rounding, a packing and a copy of it, at every step of a recipe whose masks last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from blockshock.errors import InputError
from blockshock.kernels.blocks24 import check_takes, launch_on_weight, takes


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


def masked24(w_NK: torch.Tensor, mask: torch.Tensor, into: Masked) -> None:
    """Write W where the mask is, and zeros elsewhere.

    Args:
        w_NK: float32, or of the dtype of the values; N and K multiples of 64. Copied first where its rows do not lie
            densely.
        mask: in bits as of ``make24``, int16 (N/4, K/4): 2:4 along rows, and along columns where these are packed.
        into: what is written.

    Raises:
        InputError: of W, the mask or what is written.
        KernelUnavailable: W is not on such a GPU.
    """
    check_takes(w_NK, into.values)
    alike = into.values.shape == w_NK.shape == tuple(4 * size for size in mask.shape)
    if not takes(w_NK, into.values.dtype) or not alike or mask.dtype != torch.int16:
        raise InputError(
            f"weights are made of W like their values, or in float32, and a mask in bits, int16 (N/4, K/4); got "
            f"{tuple(w_NK.shape)} {w_NK.dtype} for {tuple(into.values.shape)} {into.values.dtype}, and a mask "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    turns = into.columns is not None
    written = [into.values, into.rows, into.rows if into.columns is None else into.columns]
    launch_on_weight("masked24", w_NK, into.values, [mask.contiguous(), *written], ("TURNS", int(turns)))
