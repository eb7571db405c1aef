"""A mask as bits, sixteen for each 4 × 4 tile: an eighth of a byte for each number, of what is read at every step."""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.matrices import in_blocks
from blockshock.training.sparse.groups import check_dense


def bits_of_mask(mask_RC: torch.Tensor) -> torch.Tensor:
    """A mask as ``masked_decay_`` and our kernels take it too: bit 4i + j is that of row i and column j of a tile.

    Args:
        mask_RC: bool, R and C multiples of four.

    Returns:
        int16 (R/4, C/4), contiguous.

    Raises:
        InputError: the mask is no such matrix.
    """
    check_dense(mask=mask_RC)
    if mask_RC.dtype != torch.bool or mask_RC.ndim != 2 or any(size % 4 for size in mask_RC.shape):
        raise InputError(
            "bits are of a boolean mask (R, C) whose sizes are multiples of 4, for they are held by 4 × 4 tiles; got "
            f"{tuple(mask_RC.shape)} of {mask_RC.dtype}"
        )
    places = torch.arange(16, device=mask_RC.device, dtype=torch.int32)
    return (in_blocks(mask_RC, 4).flatten(2).int() << places).sum(-1).to(torch.int16)


def mask_of_bits(bits: torch.Tensor) -> torch.Tensor:
    """The inverse of ``bits_of_mask``: int16 (R/4, C/4) → bool (R, C), contiguous.

    Raises:
        InputError: of another dtype, or no matrix.
    """
    check_dense(bits=bits)
    if bits.dtype != torch.int16 or bits.ndim != 2:
        raise InputError(
            f"a mask as bits is int16 (R/4, C/4), got {tuple(bits.shape)} of {bits.dtype}: bits_of_mask makes it"
        )
    each = (1 << torch.arange(16, device=bits.device, dtype=torch.int32)).to(torch.int16).view(4, 1, 4)
    return (bits[:, None, :, None] & each != 0).flatten(2).flatten(0, 1)
