"""The gradient of W with a 2:4 operand: two of each four tokens of ∇y, drawn without bias."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.matrices import generator
from blockshock.stages import stage
from blockshock.training.recipes.packing import times_24
from blockshock.training.sparse import mvue_24


def stream(device: torch.device, seed: int, draws: int) -> torch.Generator | None:
    """Of the draws after so many; None, torch's own, where code is compiled or captured, which can hold no other."""
    if torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return None
    return generator(device, seed, 9, draws)


def sampled_grad_weight(
    grad_y_BN: torch.Tensor, x_BK: torch.Tensor, draws: torch.Generator | None, dtype: torch.dtype
) -> torch.Tensor:
    """MVUE(∇yᵀ) x, (N, K) in a dtype: its mean over draws is ∇yᵀ x (FST, Hu et al., arXiv 2404.01847, §5).

    Stages ``estimate``, ``compress`` and ``grad_w``.
    """
    with stage("estimate"):
        sampled_NB = sampled(grad_y_BN.T, draws)
    return times_24(sampled_NB, x_BK, dtype)


def sampled(grad_NB: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    """MVUE of a matrix along its rows; a last group of less than four is filled up with zeros, never drawn."""
    size = grad_NB.shape[1]
    return mvue_24(F.pad(grad_NB, (0, -size % 4)), generator=draws, exact=True)[:, :size].contiguous()
