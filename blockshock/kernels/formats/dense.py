"""A dense matrix in a format, multiplied by the format's own product."""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import Format, Stored
from blockshock.kernels.formats.packed import PackedQuantised, quantised
from blockshock.kernels.layout import dense_rows, whole_numbers
from blockshock.matrices import Piece, WeightSource
from blockshock.stages import copied, stage


class PackedDenseQuantised(PackedQuantised):
    """W (N, K), or some of its rows and columns, filled up with zeros to what the product takes.

    Args:
        bias: that this adds; of several parts of a sum, whose source has one, one does.
        shared_N: the scales, where others hold the other columns.

    Raises:
        InputError: a row is so large that sums of its products overflow.
    """

    q_NK: torch.Tensor

    def __init__(
        self,
        source: WeightSource,
        bias: torch.Tensor | None,
        format: Format,
        rows: slice = slice(None),
        columns: slice = slice(None),
        shared_N: torch.Tensor | None = None,
    ) -> None:
        piece = Piece(source, columns, rows=rows)
        N, K = piece.N, piece.K
        q_NK, scale_N = quantised(piece.block, N, K, format, source.device, format.multiple, shared_N)
        super().__init__(K, format, scale_N, bias, N * K)
        # Of a sum as of that part of it which is rounded most.
        self.roundings = format.roundings(source.device, bias is not None or source.bias is not None)
        self.register_buffer("q_NK", q_NK, persistent=False)

    def multiply(self, x: Stored, dtype: torch.dtype) -> torch.Tensor:
        filled_BK = _filled(x.numbers, max(len(x.numbers), self.format.least_tokens), self.q_NK.shape[1])
        return self.format.multiply(Stored(filled_BK, x.scale), Stored(self.q_NK, self.scale_N), self.bias, dtype)

    @staticmethod
    def held_bytes(N: int, K: int, format: Format) -> int:
        """Bytes that it holds of W (N, K), by arithmetic."""
        rows, columns = (-(-size // format.multiple) * format.multiple for size in (N, K))
        return rows * columns * format.weights.stored.itemsize + 4 * N


def _filled(q_BK: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The matrix, filled up with zeros to so many rows and columns, as it must lie: itself, or a copy, counted."""
    if q_BK.shape == (rows, columns):
        return dense_rows(q_BK)
    with stage("layout"):
        bytes_BK = whole_numbers(q_BK)
        filled = bytes_BK.new_zeros(rows, columns)
        filled[: len(q_BK), : q_BK.shape[1]] = bytes_BK
        return copied(filled.view(q_BK.dtype))
