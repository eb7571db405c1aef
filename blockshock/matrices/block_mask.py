"""Masks of square blocks: of a matrix cut into blocks of one size, some are kept, and of the others nothing is.

Of a kept block all is, or what a second mask keeps inside: such a matrix is block-sparse and, with a 2:4 mask inside,
2:4 in what is left.
"""

from __future__ import annotations

import math

import torch

from blockshock.errors import InputError, MaskError
from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.masks import Mask
from blockshock.registry import check_range

BLOCK_SIZES = (8, 16, 32, 64, 128)
"""Rows, and columns, of a block."""


class BlockMask(Mask):
    """Blocks (size × size) of an (N, K) matrix that are kept.

    Args:
        kept_RC: boolean (N/size, K/size).
        inside: of these (N, K), what is kept of a kept block; None for all.

    Raises:
        MaskError: the blocks are no boolean matrix, or the mask inside has another shape.
    """

    def __init__(self, kept_RC: torch.Tensor, size: int, inside: Mask | None = None) -> None:
        if kept_RC.ndim != 2 or kept_RC.dtype != torch.bool:
            raise MaskError(f"blocks are a boolean (N/size, K/size) tensor; got {kept_RC.dtype} {tuple(kept_RC.shape)}")
        N, K = (count * size for count in kept_RC.shape)
        super().__init__(N, K, given=kept_RC)
        if inside is not None and (inside.N, inside.K) != (N, K):
            raise MaskError(f"blocks of a ({N}, {K}) matrix, and inside a mask of ({inside.N}, {inside.K})")
        self.kept_RC, self.size, self.inside = kept_RC, size, inside

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        which = torch.arange(start, stop, device=self.kept_RC.device) // self.size
        kept_RK = self.kept_RC[which].repeat_interleave(self.size, dim=1)
        return kept_RK if self.inside is None else kept_RK & self.inside.rows(start, stop).to(kept_RK.device)

    def transposed(self) -> BlockMask:
        inside = None if self.inside is None else self.inside.transposed()
        return BlockMask(self.kept_RC.T.contiguous(), self.size, inside)


def in_blocks(w_RK: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of a matrix, as many as whole blocks have, by block: a view (R/size, K/size, size, size)."""
    return w_RK.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)


def kept_blocks(mask: Mask, size: int) -> torch.Tensor:
    """Which blocks of a size hold something that a mask keeps: boolean (N/size, K/size)."""
    if isinstance(mask, BlockMask) and mask.size == size and mask.inside is None:
        return mask.kept_RC
    blocks = row_blocks(mask.N, mask.K, multiple=size)
    return torch.cat([in_blocks(mask.rows(start, stop), size).any(-1).any(-1) for start, stop in blocks])


def count_kept(blocks: int, level: float) -> int:
    """How many of so many blocks are kept where a share ``level`` is dropped: the nearest number, at least one."""
    return max(blocks - math.floor(blocks * level + 0.5), 1)


def check_level(level: float) -> None:
    """Raises InputError unless it is the share of blocks that are dropped."""
    check_range(0, 1, level=level)
    if level == 1:
        raise InputError("level=1 drops all blocks: take a level from 0 up to below 1, as 0.9")


def check_size_of_blocks(size: int) -> None:
    """Raises InputError unless blocks can have so many rows and columns."""
    if size not in BLOCK_SIZES:
        below, above = (
            max((one for one in BLOCK_SIZES if one < size), default=None),
            min((one for one in BLOCK_SIZES if one > size), default=None),
        )
        near = " and ".join(str(one) for one in (below, above) if one is not None)
        choices = ", ".join(map(str, BLOCK_SIZES))
        raise InputError(f"size must be one of {choices}, got size={size}: nearest {near}")


def why_not_blocks(N: int, K: int, size: int, across: int = 1) -> str | None:
    """None, or one sentence that says why blocks of a size do not divide an (N, K) matrix, and which do.

    Args:
        across: the blocks beside each other come in groups of so many.
    """
    if not (N % size or K % (size * across)):
        return None
    groups = f" in groups of {across}" if across > 1 else ""
    wrong = f"blocks of {size}{groups} do not divide N = {N}, K = {K}"
    fitting = [one for one in BLOCK_SIZES if not (N % one or K % (one * across))]
    if fitting:
        nearest = min(fitting, key=lambda one: abs(math.log2(one / size)))
        return f"{wrong}: the nearest size that does is {nearest}"
    near = [
        f"{name} = {' or '.join(str(value) for value in (total - total % step, total - total % step + step) if value)}"
        for name, total, step in (("N", N, size), ("K", K, size * across))
        if total % step
    ]
    return f"{wrong}, nor does any other size: the nearest that they divide are {', '.join(near)}"
