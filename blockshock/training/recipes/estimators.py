"""The gradient of W with a 2:4 operand: two of each four tokens of ∇y, drawn without bias."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels import make24
from blockshock.kernels.cusparselt_anew import times_packed
from blockshock.kernels.cusparselt_layout import dense_of
from blockshock.machine import is_capturing
from blockshock.matrices import generator
from blockshock.stages import stage
from blockshock.training.recipes.base import EIGHT, SIXTEEN
from blockshock.training.recipes.eight_bits import grad_weight
from blockshock.training.recipes.packing import filled_up, in_one_pass, sparse_cores, times_24
from blockshock.training.sparse import mvue_24


def stream(device: torch.device, seed: int, draws: int) -> torch.Generator | None:
    """Of the draws after so many; None, torch's own, where code is compiled or captured, which can hold no other."""
    if torch.compiler.is_compiling() or is_capturing(device):
        return None
    return generator(device, seed, 9, draws)


def sampled_grad_weight(
    grad_y_BN: torch.Tensor,
    x_BK: torch.Tensor,
    draws: torch.Generator | None,
    dtype: torch.dtype,
    bits: int = SIXTEEN,
) -> torch.Tensor:
    """MVUE(∇yᵀ) x, (N, K) in a dtype: its mean over draws is ∇yᵀ x (FST, Hu et al., arXiv 2404.01847, §5).

    Stages ``estimate``, ``compress`` or ``quantise``, and ``grad_w``.
    """
    if bits == EIGHT:
        with stage("estimate"):
            sampled_NB = drawn(grad_y_BN, draws)
        return grad_weight(sampled_NB, x_BK, dtype)
    N, filled_BN = grad_y_BN.shape[1], filled_up(grad_y_BN)
    if _packs(filled_BN) and x_BK.shape[1] % 8 == 0:
        with stage("estimate"):
            packed = _packed(filled_BN, draws)
        with stage("layout"):
            x_BK = filled_up(x_BK)
        return times_packed(packed, N, x_BK, "columns", "grad_w").to(dtype)
    with stage("estimate"):
        sampled_NB = _sampled(grad_y_BN, draws)
    return times_24(sampled_NB, x_BK, dtype, "columns", "grad_w")


def drawn(grad_y_BN: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    """MVUE(∇yᵀ), (N, B): what a product that draws from the same state multiplies by."""
    filled_BN = filled_up(grad_y_BN)
    if _packs(filled_BN):
        return dense_of(_packed(filled_BN, draws), len(filled_BN))[:, : len(grad_y_BN)]
    return _sampled(grad_y_BN, draws)


def _packs(filled_BN: torch.Tensor) -> bool:
    """Whether it is drawn and packed in one pass."""
    B, N = filled_BN.shape
    traced = torch.compiler.is_compiling()
    return not traced and in_one_pass(filled_BN) and sparse_cores(N, B, filled_BN.dtype, filled_BN.device)


def _packed(filled_BN: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    seed = torch.randint(2**31 - 1, (2,), dtype=torch.int32, device=filled_BN.device, generator=draws)
    made = make24.make24(filled_BN, make24.Making("columns", "mvue"), seed=seed)
    assert made.columns is not None
    return made.columns


def _sampled(grad_y_BN: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    size = len(grad_y_BN)
    return mvue_24(F.pad(grad_y_BN.T, (0, -size % 4)), generator=draws, exact=True)[:, :size].contiguous()
