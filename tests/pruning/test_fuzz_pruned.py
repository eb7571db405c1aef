"""Pruned weights: any shape, dtype, layout, part and pruner; what is given as W′; zeros among what is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, equal, fours, is_2to4, mask_rows, matrices, matrix, rows, seeds, with_special

from blockshock.kernels.marked import marked, write_kept
from blockshock.matrices.pieces import Piece
from blockshock.matrices.positions import KeptMask, positions_of
from blockshock.matrices.weights import TensorWeights
from blockshock.measure.quality import QualitySums, lost
from blockshock.pruning import PRUNERS, JoinedWeights, PrunedWeights, Pruner, like, prune
from blockshock.pruning.base import calibration

pytestmark = pytest.mark.reliability

dtypes = st.sampled_from(FLOATS)
layouts = st.sampled_from(LAYOUTS)
parts = st.none() | st.integers(-16, 30)


class Given(Pruner):
    """Gives rows of the W′ and of the mask that it was made with."""

    def __init__(self, piece: Piece, pruned_NK: torch.Tensor, mask_NK: torch.Tensor) -> None:
        super().__init__(piece, None)
        self._found = pruned_NK, mask_NK

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        pruned, mask = (tensor[start : start + len(w_RK)] for tensor in self._found)
        return pruned, mask


@examples(300)
@given(
    name=st.sampled_from([name for name in PRUNERS.names() if not PRUNERS.get(name).needs_inputs]),
    N=rows,
    K=fours,
    dtype=dtypes,
    seed=seeds,
    layout=layouts,
    at=st.tuples(parts, parts, parts, parts),
)
def test_any_part_is_2to4_and_of_w(
    name: str, N: int, K: int, dtype: torch.dtype, seed: int, layout: str, at: tuple[int | None, ...]
) -> None:
    source = TensorWeights(matrix(N, K, dtype, seed, layout))
    piece = Piece(source, slice(at[0], at[1]), rows=slice(at[2], at[3]))
    columns = range(K)[piece.columns]
    found = attempt(prune, name, piece)
    groups = bool(piece.N and piece.K and columns.start % 4 == columns.stop % 4 == 0)
    if name == "weight_norm":
        groups = piece.K % 4 == 0 and bool(piece.N and piece.K) and found is not None
    assert (found is not None) == (groups and (not PRUNERS.get(name).transposable or (N % 4 == 0 and piece.N % 4 == 0)))
    if found is None:
        return
    assert is_2to4(found.mask.dense())
    typical = like(name, source)
    assert is_2to4(typical.dense())
    assert typical.tile is None or torch.equal(typical.part(piece.rows, piece.columns).dense(), found.mask.dense())
    assert equal(found.rows(0, piece.N), piece.block(0, piece.N).where(found.mask.dense(), 0))


@examples(200)
@given(N=rows, K=fours, dtype=dtypes, seed=seeds, cut=st.integers(1, 15), special=st.booleans(), three=st.booleans())
def test_what_is_given_is_held_bit_for_bit_or_refused(
    N: int, K: int, dtype: torch.dtype, seed: int, cut: int, special: bool, three: bool
) -> None:
    source = TensorWeights(matrix(N, K, dtype, seed))
    given_NK, mask_NK = matrix(N, K, torch.float64, seed + 1).to(dtype), mask_rows(N, K, seed)
    given_NK = with_special(given_NK, seed) if special else given_NK
    if three:
        mask_NK[-1, -4:] = torch.tensor([True, True, True, False])
    found = attempt(PrunedWeights, Piece(source), Given(Piece(source), given_NK, mask_NK), "given")
    assert (found is not None) == (not three and bool(torch.isfinite(given_NK[mask_NK]).all()))
    if found is None:
        return
    wanted = given_NK.where(mask_NK, 0)
    assert equal(found.rows(0, N), wanted)
    assert torch.equal(KeptMask(positions_of(mask_NK), K).dense(), mask_NK)
    assert torch.equal(found.mask.dense(), mask_NK)
    assert equal(found.cast(torch.float32).rows(0, N), wanted.float())
    piece = Piece(found, mask=found.mask)
    shown_NK, changed = marked(piece)
    assert torch.equal(shown_NK != 0, mask_NK), "a compressor sees the mask"
    assert changed == bool((wanted[mask_NK] == 0).any())
    values_NJ = torch.full((N, K // 2), 7.0, dtype=dtype)
    write_kept(piece, values_NJ)
    assert equal(values_NJ, wanted[mask_NK].view(N, K // 2))
    cut = min(cut, N - 1)
    if cut:
        joined = JoinedWeights(
            [
                PrunedWeights(part, Given(part, given_NK[part.rows], mask_NK[part.rows]), "given")
                for part in (Piece(source, rows=slice(0, cut)), Piece(source, rows=slice(cut, N)))
            ],
            0,
            None,
        )
        assert equal(joined.rows(0, N), wanted)
        assert torch.equal(joined.mask.dense(), mask_NK)


@examples(100)
@given(x=matrices(st.integers(0, 4), st.integers(1, 9), special=True), K=fours, N=rows, seed=seeds)
def test_any_calibration_inputs(x: torch.Tensor, K: int, N: int, seed: int) -> None:
    piece = Piece(TensorWeights(matrix(N, K, torch.float32, seed)), slice(0, 4))
    wide: Any = x.repeat(1, K)[:, :K]
    for x_TK in (x, wide):
        found = attempt(calibration, "looking", piece, lambda given=x_TK: given)
        fits = x_TK.shape[1] == K and len(x_TK) > 0 and bool(torch.isfinite(x_TK).all())
        assert (found is not None) == fits
        assert found is None or equal(found, x_TK[:, :4])


@examples(150)
@given(N=rows, K=fours, B=st.integers(0, 5), dtype=dtypes, seed=seeds, count=st.integers(1, 3))
def test_the_quality_is_that_of_the_definition(
    N: int, K: int, B: int, dtype: torch.dtype, seed: int, count: int
) -> None:
    source, x_BK = TensorWeights(matrix(N, K, dtype, seed)), matrix(B, K, dtype, seed + 1)
    mask_NK = mask_rows(N, K, seed)
    own = PrunedWeights(Piece(source), Given(Piece(source), source.rows(0, N), mask_NK), "given")
    sums = sum((lost(x_BK, source, own, index, count) for index in range(count)), QualitySums())
    w, w_own, x = source.rows(0, N).double(), own.rows(0, N).double(), x_BK.double()
    found, y = sums.quality(), x @ w.T
    for share, part, whole in (
        (found["output_error"], (x @ w_own.T - y).norm(), y.norm()),
        (found["kept_magnitude"], w_own.abs().sum(), w.abs().sum()),
        (found["kept_energy"], w_own.square().sum(), w.square().sum()),
    ):
        expected = (part / whole).item()
        assert share == expected or abs(share - expected) < 1e-6 or (math.isnan(share) and math.isnan(expected))
