"""W′: what a pruner made of W, checked once, held as its kept values, and handed out by rows as W is."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch

from blockshock.errors import InputError, MaskError
from blockshock.matrices import (
    Compressed24,
    KeptMask,
    LazyMask,
    Mask,
    PermutedWeights,
    Piece,
    Positions,
    WeightSource,
    check_transposable,
    row_blocks,
)
from blockshock.pruning.base import BLOCK_BYTES, CALIBRATION_TOKENS, Inputs, Pruner, calibration, pruner_of
from blockshock.pruning.permutation import permutation_of


class PrunedWeights(WeightSource):
    """W′ of a piece (N, K), by rows; what was dropped is zero, and what was kept may be.

    Pruned once, and held as kept values and positions: 9/16 of W in bf16.

    Attributes:
        permutation: the order of all columns of W in which the piece's are; None for W's own.

    Raises:
        InputError, MaskError: the pruner gave no W′, or no mask of it, that is one. The message says what is wrong.
    """

    mask: Mask

    def __init__(self, piece: Piece, pruner: Pruner, name: str, permutation: torch.Tensor | None = None) -> None:
        source, self.permutation = piece.source, permutation
        bias = None if source.bias is None else source.bias[piece.rows]
        super().__init__(piece.N, piece.K, source.dtype, source.device, source.seed, bias)
        self._kept = kept = Compressed24(piece.N, piece.K, source.dtype, source.device)
        like = pruner.like(source).part(piece.rows, piece.columns)
        known = None if like.tile is None else Positions(like)
        for start, stop in row_blocks(piece.N, source.K * source.dtype.itemsize, block_bytes=BLOCK_BYTES):
            w_RK = piece.block(start, stop)
            try:
                kept.write_rows(start, *_checked(pruner.prune(w_RK, start), w_RK, start))
                if known and not torch.equal(known.rows(start, stop), kept.positions[start:stop]):
                    raise MaskError(f"the mask of {_rows(start, stop)} is not the one that it is said to be")
            except (InputError, MaskError) as error:
                raise type(error)(f"pruner {name}: {error}") from None
        if not_finite := _first_not_finite(kept):
            raise InputError(f"pruner {name}: W′ holds {not_finite}")
        self.mask = like if known else KeptMask(kept.positions, piece.K)
        if pruner.transposable:
            try:
                check_transposable(self.mask)
            except MaskError as error:
                raise MaskError(f"pruner {name} says that its masks are transposable: {error}") from None

    @staticmethod
    def held_bytes(N: int, K: int, itemsize: int) -> int:
        """Bytes that W′ (N, K) takes, by arithmetic."""
        return N * (K // 2 * itemsize + -(-K // 8))

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._kept.decompress(start, stop)

    def held_values(self, start: int, stop: int) -> torch.Tensor:
        return self._kept.values_NJ[start:stop]

    def cast(self, dtype: torch.dtype) -> PrunedWeights:
        """The same of these: what rounds to zero stays kept."""
        new, kept = copy(self), Compressed24(self.N, self.K, dtype, self.device)
        kept.positions, kept.values_NJ = self._kept.positions, self._kept.values_NJ.to(dtype)
        new.dtype, new.bias, new._kept = dtype, None if self.bias is None else self.bias.to(dtype), kept
        return new


def _rows(start: int, stop: int) -> str:
    return f"rows {start} to {stop - 1}"


def _first_not_finite(kept: Compressed24) -> str | None:
    """None, or the first kept value that is NaN or inf, and where it is: two numbers tell of all whether one is."""
    if torch.stack(torch.aminmax(kept.values_NJ)).isfinite().all():
        return None
    for start, stop in row_blocks(kept.N, kept.K * kept.values_NJ.itemsize, block_bytes=BLOCK_BYTES):
        rows_RK = kept.decompress(start, stop)
        bad = (~torch.isfinite(rows_RK)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            return f"{rows_RK[row, column].item()} at row {start + row}, column {column}"
    return None


def _checked(found: object, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """W′ of a block of rows in the dtype of W, and its mask."""
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, torch.Tensor) for part in found)):
        raise InputError(f"prune gives two tensors, W′ and its mask; got {type(found).__name__}")
    pruned_RK, mask_RK = found
    rows = _rows(start, start + len(w_RK))
    if pruned_RK.shape != w_RK.shape or not pruned_RK.is_floating_point():
        wanted = f"{w_RK.dtype} {tuple(w_RK.shape)}"
        raise InputError(f"W′ of {rows} must be {wanted}, got {pruned_RK.dtype} {tuple(pruned_RK.shape)}")
    if mask_RK.shape != w_RK.shape or mask_RK.dtype != torch.bool:
        raise MaskError(
            f"the mask of {rows} must be boolean {tuple(w_RK.shape)}, got {mask_RK.dtype} {tuple(mask_RK.shape)}"
        )
    return pruned_RK.to(w_RK.dtype), mask_RK


class JoinedWeights(WeightSource):
    """Pruned pieces of one W side by side: below one another (dim 0), or beside one another (dim 1)."""

    mask: Mask

    def __init__(self, parts: list[PrunedWeights], dim: int, bias: torch.Tensor | None) -> None:
        first, (N, K) = parts[0], (sum(part.N for part in parts), sum(part.K for part in parts))
        N, K = (first.N, K) if dim else (N, first.K)
        super().__init__(N, K, first.dtype, first.device, first.seed, bias)
        self._parts, self._dim = parts, dim
        self.mask = LazyMask(N, K, lambda start, stop: _joined([part.mask for part in parts], dim, start, stop))

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return _joined(self._parts, self._dim, start, stop)


def _joined(parts: Sequence[WeightSource] | Sequence[Mask], dim: int, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop) of what the parts are side by side."""
    if dim:
        return torch.cat([part.rows(start, stop) for part in parts], dim=1)
    found, first = [], 0
    for part in parts:
        found.append(part.rows(*(min(max(end - first, 0), part.N) for end in (start, stop))))
        first += part.N
    return torch.cat(found)


def like(spec: str, source: WeightSource) -> Mask:
    """A mask that is to kernels as those that a pruner makes of this W; as of ``Pruner``."""
    return pruner_of(spec)[0].like(source)


def prune(
    spec: str, piece: Piece, inputs: Inputs | None = None, permutation_K: torch.Tensor | None = None
) -> PrunedWeights:
    """A dense piece of W pruned by what a spec such as ``magnitude`` names.

    Args:
        permutation_K: with ``permute=yes``, the order of all columns of W, of which W′ has the piece's, as
            ``permutation_of`` found it; None to have it search.

    Raises:
        UnknownName, InputError: no such pruner; it needs inputs and there are none, or not (T, K) ones.
        InputError, MaskError: as of ``PrunedWeights``.
    """
    kind, parameters, permute = pruner_of(spec)
    if permute and permutation_K is None:
        permutation_K = permutation_of(spec, piece.source, inputs)
    x_TK = calibration(spec, piece, inputs, permutation_K) if kind.needs_inputs else None
    if permutation_K is not None:
        piece = Piece(PermutedWeights(piece.source, permutation_K), piece.columns, rows=piece.rows)
    return PrunedWeights(piece, kind(piece, x_TK, **parameters), spec, permutation_K)


def pruning_bytes(spec: str, N: int, K: int, width: int, itemsize: int) -> int:
    """Bytes that pruning a piece (N, K) takes at most beside W, by arithmetic: W′, and what the pruner works with.

    Args:
        width: K of the whole W, and of the inputs.
        itemsize: bytes of an element of either.
    """
    kind = pruner_of(spec)[0]
    tokens = CALIBRATION_TOKENS if kind.needs_inputs else 0
    rows = next(iter(row_blocks(N, width * itemsize, block_bytes=BLOCK_BYTES)))[1]
    inputs = tokens * width * itemsize
    return PrunedWeights.held_bytes(N, K, itemsize) + inputs + kind.working_bytes(rows, K, tokens)
