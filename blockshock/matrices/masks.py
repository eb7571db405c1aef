"""2:4 masks as values: a mask is an (N, K) boolean matrix that hands out rows, and need not exist whole.

In a 2:4 mask each group of four consecutive columns of a row keeps exactly two. Two masks are complementary when
each position is kept by exactly one of them. A mask is transposable when it is 2:4 along rows and along columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blockshock.errors import MaskError
from blockshock.machine import torch_internals
from blockshock.matrices.blocks_of_rows import check_slice, row_blocks
from blockshock.matrices.sizes import check_shape


class Mask:
    """An (N, K) boolean matrix that hands out rows.

    Attributes:
        N, K: rows (out-features) and columns (in-features).
        tile: a boolean (P, Q) tensor that repeats over the whole mask, or None when there is none.
        permutation: the order of the columns, int64 (K,), in which it is 2:4; None for their own.

    Args:
        given: the user's tensor that the mask is read from, which must not change any more.
    """

    permutation: torch.Tensor | None = None

    def __init__(self, N: int, K: int, tile: torch.Tensor | None = None, given: torch.Tensor | None = None) -> None:
        check_shape(N, K)
        self.N, self.K, self.tile = N, K, tile
        self._given, self._version = given, torch_internals.version(given)

    @property
    def watched(self) -> tuple[torch.Tensor, int] | None:
        """The tensor that ``check_unchanged`` looks at, and how often it was written to before."""
        return None if self._given is None else (self._given, self._version)

    def check_unchanged(self) -> None:
        """Raises MaskError if the tensor that the mask was made from was written to since."""
        if self._given is not None and torch_internals.version(self._given) != self._version:
            raise MaskError(
                f"the tensor of a ({self.N}, {self.K}) mask changed after weights were packed under it: make a new "
                "mask of it, and the layer anew from to_linear()"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Read from a file: the tensor is a new one, whose writes are counted from now on.
        vars(self).update(state)
        self._version = torch_internals.version(self._given)

    def __deepcopy__(self, memo: object) -> Mask:
        return self  # a value

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as a boolean tensor (stop - start, K)."""
        check_slice(start, stop, self.N)
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError

    @property
    def ordered(self) -> Mask:
        """The mask with its columns in the order in which it is 2:4."""
        return self

    def complement(self) -> Mask:
        """The mask that keeps what this one drops."""
        return Complement(self)

    def columns(self, start: int, stop: int) -> Mask:
        """Columns [start, stop); start and stop are multiples of four, so that groups stay whole."""
        if start % 4 or stop % 4:
            raise MaskError(f"columns [{start}, {stop}) cut a group of four: both ends must be multiples of 4")
        if not 0 <= start < stop <= self.K:
            raise MaskError(f"columns [{start}, {stop}) are not columns of a mask with K = {self.K}")
        return self._part(range(self.N), range(start, stop))

    def part(self, rows: slice, columns: slice) -> Mask:
        """The mask of consecutive rows and columns; columns begin and end with a group of four."""
        across = range(self.K)[columns]
        some = self.columns(across.start, across.stop)
        return some._part(range(self.N)[rows], range(some.K))

    def _part(self, rows: range, columns: range) -> Mask:
        return self if (rows, columns) == (range(self.N), range(self.K)) else Part(self, rows, columns)

    def transposed(self) -> Mask:
        """The (K, N) mask of the transposed matrix; it is 2:4 only if this one is transposable."""
        return Transposed(self)

    def dense(self) -> torch.Tensor:
        """The whole mask as one boolean tensor (N, K)."""
        return self.rows(0, self.N)


class TiledMask(Mask):
    """A tile repeated over (N, K): costs the tile's few bytes, whatever N and K."""

    def __init__(self, tile: torch.Tensor, N: int, K: int, given: torch.Tensor | None = None) -> None:
        if tile.ndim != 2 or tile.dtype != torch.bool or not tile.numel() or K % tile.shape[1]:
            raise MaskError(
                f"a tile is a boolean (P, Q) tensor with Q dividing K = {K}; got {tile.dtype} {tuple(tile.shape)}"
            )
        super().__init__(N, K, tile, given=tile if given is None else given)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        tile = self.tile
        assert tile is not None
        which = torch.arange(start, stop, device=tile.device) % tile.shape[0]
        return tile[which].repeat(1, self.K // tile.shape[1])

    def complement(self) -> Mask:
        assert self.tile is not None
        return TiledMask(~self.tile, self.N, self.K, self._given)

    def transposed(self) -> Mask:
        assert self.tile is not None
        if self.N % self.tile.shape[0]:
            return super().transposed()
        return TiledMask(self.tile.T, self.K, self.N, self._given)

    def _part(self, rows: range, columns: range) -> Mask:
        assert self.tile is not None
        height, width = self.tile.shape
        if len(columns) % width:
            return super()._part(rows, columns)
        tile = self.tile.roll((-(rows.start % height), -(columns.start % width)), dims=(0, 1))
        return TiledMask(tile, len(rows), len(columns), self._given)


class DenseMask(Mask):
    """A mask given as a boolean tensor (N, K)."""

    def __init__(self, mask_NK: torch.Tensor) -> None:
        if mask_NK.ndim != 2 or mask_NK.dtype != torch.bool:
            raise MaskError(f"a mask is a boolean (N, K) tensor; got {mask_NK.dtype} {tuple(mask_NK.shape)}")
        super().__init__(mask_NK.shape[0], mask_NK.shape[1], given=mask_NK)
        self.mask_NK = mask_NK

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self.mask_NK[start:stop]


class LazyMask(Mask):
    """A mask whose rows are computed when asked for, by ``make(start, stop) → bool (stop - start, K)``."""

    def __init__(self, N: int, K: int, make: Callable[[int, int], torch.Tensor]) -> None:
        super().__init__(N, K)
        self._make = make

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._make(start, stop)


class _View(Mask):
    """A mask that is read from another."""

    def __init__(self, mask: Mask, N: int, K: int) -> None:
        super().__init__(N, K)
        self._mask = mask

    @property
    def watched(self) -> tuple[torch.Tensor, int] | None:
        return self._mask.watched

    def check_unchanged(self) -> None:
        self._mask.check_unchanged()


class Complement(_View):
    def __init__(self, mask: Mask) -> None:
        super().__init__(mask, mask.N, mask.K)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return ~self._mask.rows(start, stop)

    def complement(self) -> Mask:
        return self._mask


class Part(_View):
    def __init__(self, mask: Mask, rows: range, columns: range) -> None:
        super().__init__(mask, len(rows), len(columns))
        self._first, self._columns = rows.start, slice(columns.start, columns.stop)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._mask.rows(self._first + start, self._first + stop)[:, self._columns]


class Transposed(_View):
    def __init__(self, mask: Mask) -> None:
        super().__init__(mask, mask.K, mask.N)

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        blocks = row_blocks(self._mask.N, self._mask.K)
        return torch.cat([self._mask.rows(first, last)[:, start:stop] for first, last in blocks]).T

    def transposed(self) -> Mask:
        return self._mask
