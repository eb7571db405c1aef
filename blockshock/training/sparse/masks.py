"""Which two of each four stay: by size, or so that the transposed matrix is 2:4 as well."""

from __future__ import annotations

import math

import torch

from blockshock.errors import InputError
from blockshock.kernels import fours
from blockshock.matrices import best_tiles, row_blocks, two_largest
from blockshock.training.sparse.groups import check_dense, in_fours

_WORKING_BYTES = 88
"""Of an element, while its tile is looked for."""


def mask_24(x: torch.Tensor, dim: int = -1, signed: bool = False) -> torch.Tensor:
    """The two of each four along ``dim`` with the largest \\|x\\| (Mishra et al., arXiv 2104.08378).

    Exactly two of each four are kept, of zeros too. Among equals the first stay; NaN counts as inf.

    Args:
        x: (…), fp16, bf16, fp32 or fp64, however it lies in memory.
        signed: the largest x, not \\|x\\|: of numbers that an activation function of positive values follows, such as
            relu² (Haziza et al., arXiv 2503.16672).

    Returns:
        bool (…), contiguous.

    Raises:
        InputError: ``x`` has no dimension ``dim``, its size is not a multiple of four, or the dtype is another.
    """
    in_fours(x, dim)
    if dim in (-1, x.ndim - 1) and fours.takes(x):
        return fours.two_largest(x.detach(), signed)
    scores = (x if signed else x.abs()).detach()
    return two_largest(scores.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), dim)


def transposable_mask(w_RC: torch.Tensor) -> torch.Tensor:
    """Of each 4 × 4 tile the pattern, of all 90 with two kept in each row and column, that keeps the largest Σ\\|w\\|.

    ``argmax_P ⟨P, |tile|⟩`` (Hubara et al., arXiv 2102.08124; FST, Hu et al., arXiv 2404.01847, §4.1). The sums are
    compared exactly: no rounding decides, as it may where the search is a product in TF32. Of patterns with equal sums
    the first stays: the first row decides, then the second, 1100 before 1010, 1001, 0110, 0101 and 0011.

    Args:
        w_RC: fp16, bf16, fp32 or fp64, however it lies; NaN and inf count as the largest number of the dtype.

    Returns:
        bool (R, C), contiguous: 2:4 along rows and along columns.

    Raises:
        InputError: ``w_RC`` is no matrix, R or C is not a multiple of four, or the dtype is another.
    """
    check_dense(w=w_RC)
    if w_RC.ndim != 2:
        raise InputError(f"tiles are of a matrix (R, C), got {tuple(w_RC.shape)}: flatten all but its last dimension")
    in_fours(w_RC, 0, "w")
    in_fours(w_RC, 1, "w")
    mask_RC = torch.empty(w_RC.shape, dtype=torch.bool, device=w_RC.device)
    for start, stop in row_blocks(len(w_RC), _WORKING_BYTES * w_RC.shape[1], 1 << 30):
        mask_RC[start:stop] = best_tiles(w_RC[start:stop].detach().abs())
    return mask_RC
