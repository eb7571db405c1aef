"""The columns of x that the products of two halves use, where the rows of each keep the same ones."""

from __future__ import annotations

import torch

from blockshock.machine import Place, shard
from blockshock.matrices import columns_on_gpu
from blockshock.matrices.repeating_rows import FEW, WORDS, Every, fits_words


class ColumnsOfHalves(Place):
    """Where the gradients of these belong: rank r has those that half r % 2 keeps of column shard r // 2.

    Args:
        first, second: what each half keeps; together all columns.
    """

    def __init__(self, first: Every, second: Every) -> None:
        self._kept = first, second
        self._alternates = (first.positions, second.positions) == ((0, 2), (1, 3))
        """The halves' columns lie in turn."""
        self._by_pairs = (first.positions, second.positions) == ((0, 1), (2, 3))
        """Pairs of them do."""

    def put(self, shards: list[torch.Tensor], whole: torch.Tensor) -> None:
        first, second = self._kept
        for pair in range(len(shards) // 2):
            one_BJ, other_BJ = shards[2 * pair : 2 * pair + 2]
            columns = whole[:, shard(whole.shape[1], pair, len(shards) // 2, "K")]
            if first.width == 4 and columns_on_gpu.puts(one_BJ, other_BJ, columns):
                columns_on_gpu.put(first.positions, one_BJ, other_BJ, columns)
            else:
                first.put(one_BJ, columns)
                second.put(other_BJ, columns)

    def joined(self, stacked: torch.Tensor, ranks: int) -> torch.Tensor:
        (rows, J), dtype = stacked.shape, stacked.dtype
        tokens = rows // ranks
        if columns_on_gpu.sees(stacked) or not (self._alternates or self._by_pairs):
            whole = stacked.new_empty(tokens, ranks * J)
            self.put(list(stacked.chunk(ranks)), whole)
            return whole
        # One copy for all ranks: of a token the shards of columns in turn, of these what each half has.
        run = 2 if self._by_pairs else 1
        if run == 2 and stacked.numel() > FEW and not torch.compiler.is_compiling() and fits_words(stacked):
            stacked, J, run = stacked.view(WORDS[dtype.itemsize]), J // 2, 1
        part = tokens * J
        sizes, strides = (tokens, ranks // 2, J // run, 2, run), (J, 2 * part, run, part, 1)
        turned = stacked.as_strided(sizes, strides).reshape(tokens, ranks * J)
        return turned.contiguous().view(dtype)  # of one group of columns the shape alone may be a view
