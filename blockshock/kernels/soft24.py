"""S-STE's weights made in one pass over a GPU's memory: dense and packed, and with them their mask and what it changed.

In plain torch that is a mask, its difference from the one before, a threshold, a scale, a rounding and a packing, each
a pass or more, at every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from blockshock.errors import InputError
from blockshock.kernels.blocks24 import check_takes, launch_on_weight, takes
from blockshock.kernels.cusparselt_layout import SIDE


class Soft(NamedTuple):
    """Where what is made of a W (N, K) lies.

    Attributes:
        values: β·S(W), (N, K), bf16 or fp16.
        rows: the same packed as cuSPARSELt has it, of N · 9/16 K such numbers.
        mask: what S(W) keeps, in bits as of ``make24``, int16 (N/4, K/4).
        flips: how many elements this mask keeps and the one before dropped, or the other way round, of each eighth of
            each 64 × 64 block, int16 (N/64, K/64, 8).
    """

    values: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor
    flips: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, rows: torch.Tensor) -> Soft:
        """These, of a weight that was given neither yet, and a mask of nothing."""
        N, K = values.shape
        mask = values.new_zeros(N // 4, K // 4, dtype=torch.int16)
        return cls(values, rows, mask, values.new_zeros(N // SIDE, K // SIDE, 8, dtype=torch.int16))

    @property
    def flipped(self) -> torch.Tensor:
        """The share of all elements that flips are, float32 ()."""
        return self.flips.sum() / self.values.numel()


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
    check_takes(w_NK, into.values)
    if not takes(w_NK, into.values.dtype) or into.values.shape != w_NK.shape or scale.dtype != torch.float64:
        raise InputError(
            f"β·S(W) is made of W like its values, or in float32, and a scale of float64; got {tuple(w_NK.shape)} "
            f"{w_NK.dtype} for {tuple(into.values.shape)} {into.values.dtype}, and a scale of {scale.dtype}"
        )
    launch_on_weight("soft24", w_NK, into.values, [scale, *into])
