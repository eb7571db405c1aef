"""A piece of W: what one rank multiplies by, and a kernel packs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from blockshock.errors import MaskError
from blockshock.matrices.compressed import gather_kept
from blockshock.matrices.masks import Mask
from blockshock.matrices.positions import Positions
from blockshock.matrices.weights import TransposedWeights, WeightSource


def _all() -> slice:
    return slice(None)


@dataclass(frozen=True)
class Piece:
    """Some columns and rows of a source, and what of them is kept.

    Attributes:
        columns, rows: consecutive ones; all, unless said.
        mask: of these rows and columns, 2:4; None of a dense piece.
    """

    source: WeightSource
    columns: slice = field(default_factory=_all)
    mask: Mask | None = None
    rows: slice = field(default_factory=_all)

    @property
    def N(self) -> int:
        return len(range(self.source.N)[self.rows])

    @property
    def K(self) -> int:
        return len(range(self.source.K)[self.columns])

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def kept(self) -> Mask:
        """The mask of a piece that has one."""
        assert self.mask is not None, "a dense piece: Kernel.check refuses it"
        return self.mask

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the piece as they are in W, (rows, K)."""
        first = range(self.source.N)[self.rows].start
        return self.source.rows(first + start, first + stop)[:, self.columns]

    def kept_block(self, start: int, stop: int) -> torch.Tensor:
        """The same rows with zeros where the mask drops."""
        block_RK = self.block(start, stop)
        if self.mask is self.source.mask:
            return block_RK
        return block_RK.where(self.kept.rows(start, stop).to(self.device), 0)

    def dense(self) -> torch.Tensor:
        """The piece as a new (N, K) tensor with zeros where the mask drops."""
        return self.source.gather(self.columns, self.mask, self.rows)

    def transposed(self) -> Piece:
        """The piece of Wᵀ: 2:4 only if the mask is transposable."""
        turned = None if self.mask is None else self.mask.transposed()
        return Piece(TransposedWeights(self.source, self.columns), self.rows, turned)

    def kept_values(self, start: int, stop: int) -> torch.Tensor:
        """Kept values of rows [start, stop) in column order, (rows, K/2); not to be written to."""
        if self.mask is self.source.mask and (held_RJ := self.source.held_values(start, stop)) is not None:
            return held_RJ
        return gather_kept(self.block(start, stop), self._positions.rows(start, stop).to(self.device))

    @cached_property
    def _positions(self) -> Positions:
        return Positions(self.kept)


class MaskedWeights(WeightSource):
    """Of another source what a mask keeps; zero elsewhere. Made by rows: nothing is held.

    Attributes:
        source: the other one.
    """

    mask: Mask

    def __init__(self, source: WeightSource, mask: Mask) -> None:
        super().__init__(source.N, source.K, source.dtype, source.device, source.seed, source.bias)
        if (mask.N, mask.K) != (source.N, source.K):
            raise MaskError(f"the mask is for a ({mask.N}, {mask.K}) weight, this one is ({source.N}, {source.K})")
        self.source, self.mask = source, mask

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self.masked(self.source.rows(start, stop), start)

    def masked(self, w_RK: torch.Tensor, start: int) -> torch.Tensor:
        """Of rows of the source from ``start`` on, in any dtype, what stays."""
        return w_RK.where(self.mask.rows(start, start + len(w_RK)).to(self.device), 0)


class PieceWeights(WeightSource):
    """What a piece multiplies by, without a bias: zero where its mask drops. Held as a dense tensor."""

    def __init__(self, piece: Piece) -> None:
        super().__init__(piece.N, piece.K, piece.dtype, piece.device, piece.source.seed, bias=None)
        self._w_NK = piece.dense()

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._w_NK[start:stop]
