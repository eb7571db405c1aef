"""Row-periodic masks need no sparse hardware: the product is dense over the kept columns.

If every row keeps the same columns c, then x @ W24ᵀ = x[:, c] @ W24[:, c]ᵀ, a dense product over K/2. A tile with a
few distinct rows is that many such products, each for its own output features.

On GPUs, packed for the forward pass alone, kept values lie transposed, output features one beside the other: of few
tokens the product reads them at a higher rate (`dense_single:transposed=yes` shows by how much). With a backward pass,
whose product has it the other way round, they lie in rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from blockshock.kernels.base import KERNELS, Kernel
from blockshock.kernels.dense import multiplied
from blockshock.kernels.packed import Packed
from blockshock.matrices import MOST_PATTERNS, Every, Mask, Piece, RowPatterns, row_blocks
from blockshock.stages import copied, in_stage, stage


class PackedGathered(Packed):
    """``kept_NJ``: the kept values (N, K/2), rows sorted by pattern; ``transposed``, its memory holds columns."""

    kept_NJ: torch.Tensor
    sorted_by_pattern = True

    def __init__(self, piece: Piece, bias: torch.Tensor | None, transposed: bool = False) -> None:
        super().__init__()
        assert piece.kept.tile is not None
        self.patterns, self.K = RowPatterns(piece.kept.tile, piece.N), piece.K
        N, J = piece.N, piece.K // 2
        empty = torch.empty((J, N) if transposed else (N, J), dtype=piece.dtype, device=piece.device)
        self.register_buffer("kept_NJ", empty.T if transposed else empty, persistent=False)
        self.algorithm = "transposed" if transposed else ""
        self.hold_bias(bias)
        for start, stop in row_blocks(piece.N, piece.source.K * piece.dtype.itemsize, multiple=self.patterns.period):
            self.patterns.sort_into(self.kept_NJ, piece.kept_values(start, stop), start)

    def arrange(self, rows_NJ: torch.Tensor) -> torch.Tensor:
        return self.patterns.sort(rows_NJ)

    def disarrange(self, arranged_NJ: torch.Tensor) -> torch.Tensor:
        return self.patterns.unsort(arranged_NJ)

    @property
    def values(self) -> torch.Tensor:
        return self._buffers["kept_NJ"]  # type: ignore[return-value]  # where attributes are looked up in at last

    def used(self, x_BK: torch.Tensor) -> torch.Tensor:
        patterns = self.patterns.patterns
        if len(patterns) > 1 or x_BK.shape[1] != self.K:
            return x_BK
        return _take(patterns[0].kept, x_BK)

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self._product(self._taken(x_BK))

    def into(self, x_BK: torch.Tensor, out_BN: torch.Tensor) -> torch.Tensor:
        return self._product(self._taken(x_BK), out_BN)

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        return tuple(self._taken(x_BK))

    def laid_into(self, laid: Sequence[torch.Tensor], out_BN: torch.Tensor) -> torch.Tensor:
        return self._product(laid, out_BN)

    def _taken(self, x_BK: torch.Tensor) -> Iterable[torch.Tensor]:
        """Of each pattern the columns of x that it keeps, (B, K/2), once they are asked for."""
        patterns = self.patterns.patterns
        return (self.used(x_BK),) if len(patterns) == 1 else (_take(pattern.kept, x_BK) for pattern in patterns)

    def _product(self, taken: Iterable[torch.Tensor], out_BN: torch.Tensor | None = None) -> torch.Tensor:
        """y of what is taken of x for each pattern, which is asked for when its product comes."""
        parts, held = [], self._buffers
        kept_NJ, bias = held["kept_NJ"], held["bias"]
        assert kept_NJ is not None
        patterns = self.patterns.patterns
        if len(patterns) == 1:
            (x_BJ,) = taken
            if out_BN is not None:
                return multiplied(x_BJ, kept_NJ, bias, out_BN)
            return in_stage("matmul", F.linear, x_BJ, kept_NJ, bias)  # type: ignore[no-any-return]
        for x_BJ, pattern, rows_RJ in zip(taken, patterns, self.patterns.parts(kept_NJ), strict=True):
            own = None if bias is None else bias[pattern.start : pattern.stop]
            parts.append(in_stage("matmul", F.linear, x_BJ, rows_RJ, own))
        with stage("layout"):
            return copied(self.patterns.join(parts, out_BN))

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        with stage("layout"):
            grads = self.patterns.split(grad_y_BN)
        with stage("grad_x"):
            parts = [grad @ rows for rows, grad in zip(self.patterns.parts(self.kept_NJ), grads, strict=True)]
        with stage("layout"):
            return copied(self.patterns.sum_columns(parts, self.K))

    def grad_kept(self, grad_y_BN: torch.Tensor, kept: Every, out_BJ: torch.Tensor | None = None) -> torch.Tensor:
        kept_NJ = self._buffers["kept_NJ"]
        assert kept_NJ is not None
        if out_BJ is not None:
            with stage("grad_x"):
                return torch.mm(grad_y_BN, kept_NJ, out=out_BJ)
        return in_stage("grad_x", torch.mm, grad_y_BN, kept_NJ)  # type: ignore[no-any-return]

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return self.patterns.kept(w_NK)


def is_faster_transposed(piece: Piece) -> bool:
    """Whether a GPU can load it in words of 16 bytes then."""
    return piece.device.type == "cuda" and piece.N * piece.dtype.itemsize % 16 == 0


def _take(kept: Every, x_BK: torch.Tensor) -> torch.Tensor:
    return copied(in_stage("layout", kept.take, x_BK))


@KERNELS.register("gathered")
class Gathered(Kernel):
    """Any device and dtype; masks that are a tile of few distinct rows. Stores kept values alone: 1/2 of dense."""

    training_mask = pruner = training_pruner = "1100"

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        if mask is None:
            return None
        if mask.tile is None:
            return "needs a row-periodic mask (1100, 1010, 1001, their complements or tile); this one has no tile"
        if N % mask.tile.shape[0]:
            return f"needs N to be a multiple of the tile's {mask.tile.shape[0]} rows, got N = {N}"
        distinct = len(RowPatterns(mask.tile, N))
        if distinct > MOST_PATTERNS:
            return f"takes tiles of at most {MOST_PATTERNS} distinct rows; this one has {distinct}"
        return None

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedGathered(piece, bias, not backward and is_faster_transposed(piece))

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return N * K // 2 * itemsize
