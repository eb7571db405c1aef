"""Pruners that look at inputs: each beside the formula of its paper, written out row by row in float64."""

from __future__ import annotations

import pytest
import torch

from blockshock.errors import InputError
from blockshock.matrices.masks import check_2to4
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import PRUNERS, PrunedWeights, prune, pruned

CALIBRATED = [name for name in PRUNERS.names() if PRUNERS.get(name).needs_inputs]


def _weights(N: int = 24, K: int = 36, dtype: torch.dtype = torch.float64, seed: int = 0) -> Piece:
    w_NK = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Piece(TensorWeights(w_NK))


def _inputs(T: int, K: int = 36, correlated: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Of channels of very different size; correlated, so that what one loses another can make up for."""
    stream = torch.Generator().manual_seed(T)
    x_TK = torch.randn(T, K, dtype=torch.float64, generator=stream) * torch.linspace(0.1, 3, K, dtype=torch.float64)
    if correlated:
        mixing_KK = 0.7 * torch.randn(K, K, dtype=torch.float64, generator=stream)
        x_TK = x_TK + x_TK @ mixing_KK
    return x_TK.to(dtype)


def _lost(found: PrunedWeights, piece: Piece, x_TK: torch.Tensor) -> float:
    """Relative error of the output."""
    right_TN = x_TK @ piece.block(0, piece.N).double().T
    return ((x_TK @ found.rows(0, piece.N).double().T - right_TN).norm() / right_TN.norm()).item()


# Wanda ----------------------------------------------------------------------------------------------------------------


def test_wandas_toy() -> None:
    """torchao's: weights 1 to 8, inputs of ones."""
    piece = Piece(TensorWeights(torch.arange(1.0, 9).view(1, 8)))
    assert prune("wanda", piece, lambda: torch.ones(3, 8)).rows(0, 1).tolist() == [[0, 0, 3, 4, 0, 0, 7, 8]]


def test_wanda_keeps_the_two_largest_products_of_weight_and_norm() -> None:
    piece, x_TK = _weights(), _inputs(50)
    w_NK = piece.block(0, 24)
    for row, kept in zip(w_NK.tolist(), prune("wanda", piece, lambda: x_TK).mask.dense().tolist(), strict=True):
        scores = [abs(w) * sum(x * x for x in x_TK[:, k].tolist()) ** 0.5 for k, w in enumerate(row)]
        for at in range(0, 36, 4):
            group = scores[at : at + 4]
            assert sum(kept[at : at + 4]) == 2
            assert sorted(s for s, k in zip(group, kept[at : at + 4], strict=True) if k) == sorted(group)[2:]


def test_wandas_norms_neither_overflow_nor_underflow_in_fp16() -> None:
    """Squares of 300 and of 1e-4 are no numbers of fp16."""
    size_K = torch.tensor([300.0, 200.0, 1e-4, 2e-4] * 4)
    x_TK = size_K.expand(500, -1).half()
    found = prune("wanda", Piece(TensorWeights(torch.ones(2, 16).half())), lambda: x_TK)
    assert found.mask.dense()[0].tolist() == [True, True, False, False] * 4
    tiny = prune("wanda", Piece(TensorWeights(torch.ones(2, 16).half())), lambda: x_TK[:, [2, 3, 2, 3] * 4])
    assert tiny.mask.dense()[0].tolist() == [False, True, False, True] * 4


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


@pytest.mark.parametrize(("tokens", "K"), [(200, 36), (9, 36), (60, 132), (1, 8)])
def test_sparsegpt_is_the_optimal_brain_surgeon(tokens: int, K: int) -> None:
    """Fewer tokens than channels too, and more columns than one block of them."""
    piece, x_TK = _weights(6, K), _inputs(tokens, K)
    hessian_KK = 2 / tokens * x_TK.T @ x_TK
    hessian_KK += 0.01 * hessian_KK.diagonal().mean() * torch.eye(K, dtype=torch.float64)
    found = prune("sparsegpt", piece, lambda: x_TK).rows(0, 6)
    for row, w_K in zip(found, piece.block(0, 6), strict=True):
        torch.testing.assert_close(row, _by_surgeon(w_K, hessian_KK), rtol=1e-6, atol=1e-8)


def test_sparsegpt_over_uncorrelated_channels_of_one_size_is_magnitude() -> None:
    x_TK = 3 * torch.eye(36, dtype=torch.float64).repeat(4, 1)
    piece = _weights()
    found = prune("sparsegpt", piece, lambda: x_TK)
    assert torch.equal(found.mask.dense(), prune("magnitude", piece).mask.dense())
    torch.testing.assert_close(found.rows(0, 24), piece.block(0, 24) * found.mask.dense())


def test_dead_channels_lose_their_weights_and_disturb_no_other() -> None:
    piece, x_TK = _weights(), _inputs(80)
    x_TK[:, [0, 5, 35]] = 0
    found = prune("sparsegpt", piece, lambda: x_TK)
    check_2to4(found.mask)
    assert not found.rows(0, 24)[:, [0, 5, 35]].any()
    assert _lost(found, piece, x_TK) < _lost(prune("wanda", piece, lambda: x_TK), piece, x_TK)
    assert torch.isfinite(prune("sparsegpt", piece, lambda: torch.zeros(4, 36)).rows(0, 24)).all()


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), 1e9])
def test_a_damping_out_of_range_is_refused(damping: float) -> None:
    with pytest.raises(InputError, match="takes a damping above 0"):
        prune(f"sparsegpt:damping={damping}", _weights(), lambda: _inputs(5))


# Both -----------------------------------------------------------------------------------------------------------------


def test_who_looks_at_inputs_loses_less() -> None:
    piece, x_TK = _weights(96, 128), _inputs(512, 128)
    lost = {name: _lost(prune(name, piece, lambda: x_TK), piece, x_TK) for name in ("sparsegpt", "wanda", "magnitude")}
    assert lost["sparsegpt"] < 0.8 * lost["wanda"] < 0.9 * lost["magnitude"]


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_pruned_by_themselves_in_any_dtype(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece, x_TK = _weights(dtype=dtype), _inputs(64, dtype=dtype)
    whole = prune(name, piece, lambda: x_TK)
    check_2to4(whole.mask)
    monkeypatch.setattr(pruned, "row_blocks", lambda rows, row_bytes, **_: [(0, 8), (8, rows)])
    blocks, part = prune(name, piece, lambda: x_TK), prune(name, Piece(piece.source, rows=slice(4, 20)), lambda: x_TK)
    assert torch.equal(blocks.rows(0, 24), whole.rows(0, 24))
    assert torch.equal(part.rows(0, 16), whole.rows(4, 20))
    assert torch.equal(part.mask.dense(), whole.mask.rows(4, 20))


@pytest.mark.parametrize("name", CALIBRATED)
def test_columns_are_pruned_by_their_own_inputs(name: str) -> None:
    piece, x_TK = _weights(), _inputs(64)
    part = prune(name, Piece(piece.source, slice(8, 28)), lambda: x_TK)
    alone = Piece(TensorWeights(piece.block(0, 24)[:, 8:28].contiguous()))
    assert torch.equal(part.rows(0, 24), prune(name, alone, lambda: x_TK[:, 8:28]).rows(0, 24))


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("inputs", [None, torch.ones(3, 35), torch.ones(0, 36)])
def test_without_inputs_of_its_width_they_refuse(name: str, inputs: torch.Tensor | None) -> None:
    with pytest.raises(InputError, match=f"pruner {name} needs .*calibration inputs"):
        prune(name, _weights(), None if inputs is None else lambda: inputs)
