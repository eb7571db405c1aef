"""Pruners that look at inputs: each beside the formula of its paper, written out row by row in float64.

ALPS is in test_calibrated_alps.py; how they compare, in test_calibrated_quality.py.
"""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from calibrated import CALIBRATED, output_lost, slow_hessian, some_inputs, some_weights

from blockshock.errors import InputError, MaskError
from blockshock.matrices.mask_checks import check_2to4, check_transposable
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import PRUNERS, prune, pruned, pruner_of

# Wanda ----------------------------------------------------------------------------------------------------------------


def test_wandas_toy() -> None:
    """torchao's: weights 1 to 8, inputs of ones."""
    piece = Piece(TensorWeights(torch.arange(1.0, 9).view(1, 8)))
    assert prune("wanda", piece, lambda: torch.ones(3, 8)).rows(0, 1).tolist() == [[0, 0, 3, 4, 0, 0, 7, 8]]


Scores = list[list[float]]


def _sizes(x_TK: torch.Tensor) -> list[float]:
    return [sum(x * x for x in x_TK[:, k].tolist()) ** 0.5 for k in range(x_TK.shape[1])]


def _wandas_scores(w_NK: Scores, x_TK: torch.Tensor) -> Scores:
    return [[abs(w) * size for w, size in zip(row, _sizes(x_TK), strict=True)] for row in w_NK]


def _rias_scores(w_NK: Scores, x_TK: torch.Tensor, a: float = 0.5) -> Scores:
    columns = [sum(abs(row[k]) for row in w_NK) for k in range(len(w_NK[0]))]
    rows = [sum(abs(w) for w in row) for row in w_NK]
    return [
        [(abs(w) / columns[k] + abs(w) / rows[n]) * _sizes(x_TK)[k] ** a for k, w in enumerate(row)]
        for n, row in enumerate(w_NK)
    ]


SCORES = {"wanda": _wandas_scores, "ria": _rias_scores, "ria:a=1.0": partial(_rias_scores, a=1.0)}


@pytest.mark.parametrize("name", ["ria", "ria:a=0", "ria:permute=yes", "tile_ria"])
@pytest.mark.parametrize("at", range(4))
def test_rows_and_columns_of_zeros_have_no_part_of_nothing(name: str, at: int) -> None:
    """As where K was filled up, or channels were pruned before."""
    stream = torch.Generator().manual_seed(at)
    w_NK, x_TK = torch.randn(16, 32, generator=stream), torch.randn(60, 32, generator=stream)
    w_NK[:, at::4], w_NK[3] = 0, 0
    found = prune(name, Piece(TensorWeights(w_NK)), lambda: x_TK)
    kept_NK = found.mask.dense()
    w_NK = w_NK if found.permutation is None else w_NK[:, found.permutation]
    if "permute" not in name and not name.startswith("tile"):
        others = [row for row in range(16) if row != 3]
        assert not kept_NK[others, at::4].any(), "of three weights and a zero two weights stay"
    torch.testing.assert_close(found.rows(0, 16), w_NK.where(kept_NK, 0))


@pytest.mark.parametrize("name", SCORES)
def test_the_two_largest_scores_of_each_four_stay(name: str) -> None:
    piece, x_TK = some_weights(), some_inputs(50)
    found = prune(name, piece, lambda: x_TK)
    scores = SCORES[name](piece.block(0, 24).tolist(), x_TK)
    for row, kept in zip(scores, found.mask.dense().tolist(), strict=True):
        for at in range(0, 36, 4):
            group = row[at : at + 4]
            assert sum(kept[at : at + 4]) == 2
            assert sorted(s for s, k in zip(group, kept[at : at + 4], strict=True) if k) == sorted(group)[2:]
    assert torch.equal(found.rows(0, 24), piece.block(0, 24) * found.mask.dense())


TILES = [
    rows
    for rows in itertools.product(itertools.combinations(range(4), 2), repeat=4)
    if sorted(sum(rows, ())) == sorted([*range(4)] * 2)
]
"""The columns that each of four rows keeps: two of each row and of each column, 90 of them."""


@pytest.mark.parametrize("name", ["wanda", "ria"])
def test_the_tile_with_the_largest_sum_of_squared_scores_stays(name: str) -> None:
    piece, x_TK = some_weights(), some_inputs(50)
    found = prune(f"tile_{name}", piece, lambda: x_TK)
    scores, kept = SCORES[name](piece.block(0, 24).tolist(), x_TK), found.mask.dense().tolist()
    assert len(TILES) == 90
    check_transposable(found.mask)
    for top, left in itertools.product(range(0, 24, 4), range(0, 36, 4)):
        sums = [sum(scores[top + r][left + c] ** 2 for r in range(4) for c in tile[r]) for tile in TILES]
        stays = sum(scores[top + r][left + c] ** 2 for r in range(4) for c in range(4) if kept[top + r][left + c])
        assert stays == pytest.approx(max(sums), rel=1e-12)
    assert torch.equal(found.rows(0, 24), piece.block(0, 24) * found.mask.dense())


def test_rias_columns_are_those_of_the_whole_piece() -> None:
    """A row of one column's largest weights is judged by the others too, whatever part of W is pruned with it."""
    piece, x_TK = some_weights(), some_inputs(50)
    whole = prune("ria", piece, lambda: x_TK)
    part = prune("ria", Piece(piece.source, rows=slice(4, 20)), lambda: x_TK)
    alone = Piece(TensorWeights(piece.block(4, 20)))
    assert torch.equal(part.mask.dense(), prune("ria", alone, lambda: x_TK).mask.dense())
    assert not torch.equal(part.mask.dense(), whole.mask.rows(4, 20))


@pytest.mark.parametrize("a", [-0.5, 11.0])
def test_a_power_out_of_range_is_refused(a: float) -> None:
    with pytest.raises(InputError, match=r"a must lie in 0 … 10, got a="):
        prune(f"ria:a={a}", some_weights(), lambda: some_inputs(5))


@pytest.mark.parametrize("name", ["wanda", "ria", "sparsegpt", "alps"])
def test_norms_neither_overflow_nor_underflow_in_fp16(name: str) -> None:
    """Squares of 300 and of 1e-4 are no numbers of fp16."""
    size_K = torch.tensor([300.0, 200.0, 1e-4, 2e-4] * 4)
    x_TK = (size_K * (torch.arange(16) == torch.arange(64)[:, None] % 16)).half()
    found = prune(name, Piece(TensorWeights(torch.ones(2, 16).half())), lambda: x_TK)
    assert found.mask.dense()[0].tolist() == [True, True, False, False] * 4
    tiny_TK = torch.zeros(64, 16).half()
    tiny_TK[:, [0, 1, 4, 5, 8, 9, 12, 13]] = x_TK[:, [2, 3, 6, 7, 10, 11, 14, 15]]
    tiny = prune(name, Piece(TensorWeights(torch.ones(2, 16).half())), lambda: tiny_TK)
    assert tiny.mask.dense()[0].tolist() == [True, True, False, False] * 4


# SparseGPT ------------------------------------------------------------------------------------------------------------


def _by_surgeon(w_K: torch.Tensor, hessian_KK: torch.Tensor) -> torch.Tensor:
    """One row, by the optimal brain surgeon: the inverse of the Hessian of all columns not yet settled, made anew for
    each column (Hassibi and Stork, 1992), where SparseGPT reads one Cholesky factor."""
    w_K, kept = w_K.clone(), set()
    for k in range(len(w_K)):
        if k % 4 == 0:
            scores = {}
            for j in range(k, k + 4):
                scores[j] = w_K[j] ** 2 / torch.linalg.inv(hessian_KK[j:, j:])[0, 0]
            kept |= set(sorted(scores, key=lambda j: (-scores[j].item(), j))[:2])
        if k not in kept:
            inverse = torch.linalg.inv(hessian_KK[k:, k:])
            w_K[k:] = w_K[k:] - w_K[k] / inverse[0, 0] * inverse[0]
            w_K[k] = 0
    return w_K


@pytest.mark.parametrize("shrink", ["yes", "no"])
@pytest.mark.parametrize(("tokens", "K"), [(200, 36), (9, 36), (60, 132), (1, 8)])
def test_sparsegpt_is_the_optimal_brain_surgeon(tokens: int, K: int, shrink: str) -> None:
    """Fewer tokens than channels too, and more columns than one block of them."""
    piece, x_TK = some_weights(6, K), some_inputs(tokens, K)
    x_TK[:, 6] = 0
    hessian_KK = slow_hessian(x_TK, shrink=shrink == "yes")
    found = prune(f"sparsegpt:shrink={shrink}", piece, lambda: x_TK).rows(0, 6)
    for row, w_K in zip(found, piece.block(0, 6).index_fill(1, torch.tensor([6]), 0), strict=True):
        torch.testing.assert_close(row, _by_surgeon(w_K, hessian_KK), rtol=1e-6, atol=1e-8)


def _tiles_by_surgeon(w_4K: torch.Tensor, hessian_KK: torch.Tensor) -> torch.Tensor:
    """The same of four rows, whose columns keep two of each four as well."""
    w_4K, K = w_4K.clone(), w_4K.shape[1]
    for k in range(0, K, 4):
        sizes = [torch.linalg.inv(hessian_KK[j:, j:])[0, 0] for j in range(k, k + 4)]
        tile = max(TILES, key=lambda tile: sum(w_4K[r, k + c] ** 2 / sizes[c] for r in range(4) for c in tile[r]))
        for row, kept in zip(w_4K, tile, strict=True):
            for j in range(k, k + 4):
                if j - k not in kept:
                    inverse = torch.linalg.inv(hessian_KK[j:, j:])
                    row[j:] -= row[j].item() / inverse[0, 0] * inverse[0]
                    row[j] = 0
    return w_4K


def test_sparsegpt_of_tiles_is_that_of_four_rows_together() -> None:
    piece, x_TK = some_weights(8, 132), some_inputs(60, 132)
    found = prune("tile_sparsegpt", piece, lambda: x_TK)
    for top in (0, 4):
        wanted = _tiles_by_surgeon(piece.block(top, top + 4), slow_hessian(x_TK))
        torch.testing.assert_close(found.rows(top, top + 4), wanted, rtol=1e-6, atol=1e-8)


def test_sparsegpt_over_uncorrelated_channels_of_one_size_is_magnitude() -> None:
    x_TK = 3 * torch.eye(36, dtype=torch.float64).repeat(4, 1)
    piece = some_weights()
    found = prune("sparsegpt", piece, lambda: x_TK)
    assert torch.equal(found.mask.dense(), prune("magnitude", piece).mask.dense())
    torch.testing.assert_close(found.rows(0, 24), piece.block(0, 24) * found.mask.dense())


@pytest.mark.parametrize("name", ["sparsegpt", "alps"])
@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), 1e9])
def test_a_damping_out_of_range_is_refused(name: str, damping: float) -> None:
    with pytest.raises(InputError, match="a pruner takes a damping above 0"):
        prune(f"{name}:damping={damping}", some_weights(), lambda: some_inputs(5))
    with pytest.raises(InputError, match="a pruner takes a damping above 0"):
        pruner_of(f"{name}:damping={damping}")  # before anything is drawn, as options are


# All ------------------------------------------------------------------------------------------------------------------


UPDATING = ["sparsegpt", "tile_sparsegpt", "alps"]


@pytest.mark.parametrize("name", CALIBRATED)
def test_dead_channels_lose_and_disturb_no_other(name: str) -> None:
    piece, x_TK, dead = some_weights(), some_inputs(80), [0, 5, 35]
    x_TK[:, dead] = 0
    found = prune(name, piece, lambda: x_TK)
    check_2to4(found.mask)
    assert name not in UPDATING or not found.rows(0, 24)[:, dead].any()
    assert output_lost(found, piece, x_TK) < output_lost(prune("random", piece), piece, x_TK)
    silent = prune(name, piece, lambda: torch.zeros(4, 36))
    check_2to4(silent.mask)
    assert torch.isfinite(silent.rows(0, 24)).all()


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_weights_and_inputs_changes_nothing(name: str, scale: float) -> None:
    piece, x_TK = some_weights(), some_inputs(20)
    x_TK[:, 7] = 0
    wanted = prune(name, piece, lambda: x_TK)
    for w_scale, x_scale in ((scale, 1), (1, scale)):
        scaled = Piece(TensorWeights(piece.block(0, 24) * w_scale))
        found = prune(name, scaled, lambda by=x_scale: x_TK * by)  # type: ignore[misc]
        assert torch.equal(found.mask.dense(), wanted.mask.dense())
        torch.testing.assert_close(found.rows(0, 24), wanted.rows(0, 24) * w_scale, rtol=1e-8, atol=1e-12 * w_scale)


@pytest.mark.parametrize("name", CALIBRATED)
def test_copies_of_a_channel_are_no_fault(name: str) -> None:
    """The second moments have no inverse then: damping gives them one."""
    piece, x_TK = some_weights(), some_inputs(80)[:, :9].repeat_interleave(4, dim=1)
    found = prune(name, piece, lambda: x_TK)
    check_2to4(found.mask)
    if name in UPDATING:
        assert output_lost(found, piece, x_TK) < 0.2, "one takes over what its copy did"


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_pruned_by_themselves_in_any_dtype(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece, x_TK = some_weights(dtype=dtype), some_inputs(64, dtype=dtype)
    whole = prune(name, piece, lambda: x_TK)
    check_2to4(whole.mask)
    monkeypatch.setattr(pruned, "row_blocks", lambda rows, row_bytes, **_: [(0, 8), (8, rows)])
    blocks, part = prune(name, piece, lambda: x_TK), prune(name, Piece(piece.source, rows=slice(4, 20)), lambda: x_TK)
    assert torch.equal(blocks.rows(0, 24), whole.rows(0, 24))
    if not name.endswith("ria"):  # whose columns are those of the part
        assert torch.equal(part.rows(0, 16), whole.rows(4, 20))
        assert torch.equal(part.mask.dense(), whole.mask.rows(4, 20))


@pytest.mark.parametrize("name", CALIBRATED)
def test_columns_are_pruned_by_their_own_inputs(name: str) -> None:
    piece, x_TK = some_weights(), some_inputs(64)
    part = prune(name, Piece(piece.source, slice(8, 28)), lambda: x_TK)
    alone = Piece(TensorWeights(piece.block(0, 24)[:, 8:28].contiguous()))
    assert torch.equal(part.rows(0, 24), prune(name, alone, lambda: x_TK[:, 8:28]).rows(0, 24))


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("inputs", [None, torch.ones(3, 35), torch.ones(0, 36)])
def test_without_inputs_of_its_width_they_refuse(name: str, inputs: torch.Tensor | None) -> None:
    with pytest.raises(InputError, match=f"pruner {name} needs .*calibration inputs"):
        prune(name, some_weights(), None if inputs is None else lambda: inputs)


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_that_are_no_numbers_are_refused(name: str) -> None:
    x_TK = some_inputs(20)
    x_TK[3, 5] = torch.nan
    with pytest.raises(InputError, match=f"holds nan at row 3, column 5: pruner {name} needs finite ones"):
        prune(name, some_weights(), lambda: x_TK)


@pytest.mark.parametrize("name", [name for name in CALIBRATED if PRUNERS.get(name).transposable])
def test_rows_that_are_no_fours_have_no_tiles(name: str) -> None:
    with pytest.raises(MaskError, match="needs N to be a multiple of 4, got N = 6"):
        prune(name, Piece(some_weights(8).source, rows=slice(0, 6)), lambda: some_inputs(20))
