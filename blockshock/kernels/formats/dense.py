"""A dense matrix in a format, multiplied by the format's own product."""

from __future__ import annotations

import torch

from blockshock.kernels.formats.base import Format
from blockshock.kernels.formats.packed import PackedQuantised, quantised
from blockshock.kernels.layout import dense_rows
from blockshock.matrices import WeightSource
from blockshock.stages import copied, stage


class PackedDenseQuantised(PackedQuantised):
    """W (N, K), or some of its rows, filled up with zeros to what the product takes.

    Raises:
        InputError: a row is so large that sums of its products overflow.
    """

    q_NK: torch.Tensor

    def __init__(
        self, source: WeightSource, bias: torch.Tensor | None, format: Format, rows: slice = slice(None)
    ) -> None:
        first, N, K = range(source.N)[rows].start, len(range(source.N)[rows]), source.K

        def block(start: int, stop: int) -> torch.Tensor:
            return source.rows(first + start, first + stop)

        q_NK, scale_N = quantised(block, N, K, format, source.device, format.multiple)
        super().__init__(K, format, scale_N, bias, N * K)
        self.roundings = format.roundings(source.device, bias is not None)
        self.register_buffer("q_NK", q_NK, persistent=False)

    def multiply(self, q_BK: torch.Tensor, scale_B1: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        filled_BK = _filled(q_BK, max(len(q_BK), self.format.least_tokens), self.q_NK.shape[1])
        return self.format.multiply(filled_BK, scale_B1, self.q_NK, self.scale_N, self.bias, dtype)

    @staticmethod
    def held_bytes(N: int, K: int, format: Format) -> int:
        """Bytes that it holds of W (N, K), by arithmetic."""
        rows, columns = (-(-size // format.multiple) * format.multiple for size in (N, K))
        return rows * columns * format.stored.itemsize + 4 * N


def _filled(q_BK: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The matrix, filled up with zeros to so many rows and columns, as it must lie: itself, or a copy, counted."""
    if q_BK.shape == (rows, columns):
        return dense_rows(q_BK)
    with stage("layout"):
        filled = q_BK.new_zeros(rows, columns)
        filled[: len(q_BK), : q_BK.shape[1]] = q_BK
        return copied(filled)
