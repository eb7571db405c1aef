"""What a mask is checked for: that it is 2:4, along columns too, or what another one leaves of a matrix."""

from __future__ import annotations

import math

from blockshock.errors import MaskError
from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.masks import Mask


def check_2to4(mask: Mask) -> None:
    """Raises MaskError, naming the first offending row and group, unless each group of four keeps exactly two."""
    for start, stop in row_blocks(_rows_to_look_at(mask), mask.K):
        kept = mask.rows(start, stop).unflatten(1, (-1, 4)).sum(-1)
        bad = (kept != 2).nonzero()
        if len(bad):
            row, group = bad[0].tolist()
            raise MaskError(
                f"not 2:4: row {start + row}, group {group} keeps {int(kept[row, group])} of 4, must keep 2"
            )


def check_complementary(mask: Mask, other: Mask) -> None:
    """Raises MaskError, naming the first row and group where the two masks overlap or leave a hole."""
    if (mask.N, mask.K) != (other.N, other.K):
        raise MaskError(f"masks of different shapes: ({mask.N}, {mask.K}) and ({other.N}, {other.K})")
    for start, stop in row_blocks(_rows_to_look_at(mask, other), mask.K):
        ours, theirs = mask.rows(start, stop), other.rows(start, stop)
        bad = (ours == theirs).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            what = "overlap: both keep" if ours[row, column] else "leave a hole: neither keeps"
            raise MaskError(f"halves {what} row {start + row}, group {column // 4} (column {column})")


def check_transposable(mask: Mask) -> None:
    """Raises MaskError unless the mask is 2:4 along rows and, per group of four rows, along columns."""
    if mask.N % 4:
        raise MaskError(f"a transposable mask needs N to be a multiple of 4, got N = {mask.N}")
    check_2to4(mask)
    for start, stop in row_blocks(_rows_to_look_at(mask, multiple=4), mask.K):
        kept = mask.rows(start, stop).unflatten(0, (-1, 4)).sum(1)
        bad = (kept != 2).nonzero()
        if len(bad):
            group, column = bad[0].tolist()
            raise MaskError(
                f"not transposable: column {column}, rows {start + 4 * group} to {start + 4 * group + 3} keep "
                f"{int(kept[group, column])} of 4, must keep 2"
            )


def _rows_to_look_at(*masks: Mask, multiple: int = 1) -> int:
    """The first rows of masks of one height, so many that all others repeat them; a multiple, where there are more."""
    heights = [masks[0].N if mask.tile is None else len(mask.tile) for mask in masks]
    return min(math.lcm(multiple, *heights), masks[0].N)
