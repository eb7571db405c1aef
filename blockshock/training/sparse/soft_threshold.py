"""2:4 weights that are continuous in the dense ones, and the scale that makes up for what they lose.

S-STE: Hu et al., "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-Training", arXiv 2409.09099.
"""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.kernels import fours
from blockshock.training.sparse.groups import in_fours


def soft_threshold_24(w: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """S(w) = sign(w)·max(\\|w\\| − t, 0) with t the second smallest \\|w\\| of each four along ``dim``.

    At most two of each four are not zero: less where the largest are equal to t. Continuous, and differentiable by
    autograd where no two of a group are of one size; S-STE itself passes gradients straight through (``w + (S − w)``
    with S detached).

    Args:
        w: (…), fp16, bf16, fp32 or fp64. A group with NaN gives NaN.

    Returns:
        (…), of the dtype of ``w``, without the scale of ``fixed_scale``.

    Raises:
        InputError: ``w`` has no dimension ``dim``, its size is not a multiple of four, or the dtype is another.
    """
    grouped, axis = in_fours(w, dim, "w")
    if axis == w.ndim and fours.takes(w) and not (w.requires_grad and torch.is_grad_enabled()):
        return fours.above_threshold(w.detach())
    one, two, three, four = grouped.abs().unbind(axis)
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    other_low, other_high = torch.minimum(three, four), torch.maximum(three, four)
    second = torch.minimum(torch.maximum(low, other_low), torch.minimum(high, other_high)).unsqueeze(axis)
    return (grouped - grouped.clamp(-second, second) + 0).flatten(axis - 1, axis)  # zeros without a sign


def fixed_scale(w: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """β = ⟨W, S(W)⟩ / ‖S(W)‖², which makes β·S(W) the nearest to W: once, before the first step, and then for good.

    S-STE found that a β of its own for every step lets β and the flip rate grow without bound (arXiv 2409.09099). Its
    published layer needs ``init_scale()`` to be called, or multiplies by zero; here β is what is returned.

    Args:
        w: as of ``soft_threshold_24``.

    Returns:
        float64 (), without a gradient; a weight times it keeps its dtype.

    Raises:
        InputError: as of ``soft_threshold_24``; or nothing of S(W) is left, or W is not finite, so that there is no β.
    """
    with torch.no_grad():
        soft, dense = soft_threshold_24(w, dim).double(), w.detach().double()
    scale = (dense * soft).sum() / soft.square().sum()
    if not scale.isfinite():
        raise InputError(
            f"there is no scale for w {tuple(w.shape)}: it holds NaN or inf, or all of each four are of one size, such "
            "as zero; initialise it first"
        )
    return scale
