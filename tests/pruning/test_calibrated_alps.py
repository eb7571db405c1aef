"""ALPS beside its formula, written out for one row with a system solved for each step; and beside the best there is."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch
from calibrated import output_lost, slow_hessian, some_inputs, some_weights
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import alps, prune


def _largest(w_K: torch.Tensor) -> torch.Tensor:
    """Which two of each four are; of equals the first."""
    kept = torch.zeros(len(w_K), dtype=torch.bool)
    for first in range(0, len(w_K), 4):
        order = sorted(range(first, first + 4), key=lambda k: (-abs(w_K[k].item()), k))
        kept[order[:2]] = True
    return kept


Path = list[tuple[float, torch.Tensor]]
"""Rho and D after each third step."""


def _by_admm(w_K: torch.Tensor, hessian_KK: torch.Tensor) -> tuple[torch.Tensor, Path]:
    """B of one row at the end, and how it went."""
    eye, target_K = torch.eye(len(w_K), dtype=torch.float64), hessian_KK @ w_K
    before = _largest(w_K)
    rho, grows, path = 0.1, False, []
    d_K, v_K = w_K * before, 0 * w_K
    for step in range(1, 301):
        b_K = torch.linalg.solve(hessian_KK + rho * eye, target_K - v_K + rho * d_K)
        kept = _largest(b_K + v_K / rho)
        d_K = (b_K + v_K / rho) * kept
        v_K = v_K + rho * (b_K - d_K)
        if step % 3:
            continue
        changed = (kept != before).sum().item()
        before = kept
        share = changed / (len(w_K) / 2)
        if share > 0.005:
            grows, rho = True, rho * (1.3 if share > 0.1 else 1.2)
        elif changed == 0 and (grows or step > 30):
            break
        elif grows:
            rho *= 1.1
        else:
            rho /= 5
            if changed:
                d_K, v_K = w_K * _largest(w_K), 0 * w_K
        rho = min(rho, 1e6)
        path.append((rho, d_K))
    return b_K, path


def _by_conjugate_gradients(b_K: torch.Tensor, w_K: torch.Tensor, hessian_KK: torch.Tensor) -> torch.Tensor:
    """Ten steps from what is kept of B towards the best weights at these places."""
    kept = _largest(b_K)
    matrix, right = hessian_KK[kept][:, kept], (hessian_KK @ w_K)[kept]
    u = b_K[kept]
    residual = right - matrix @ u
    direction = residual
    for _ in range(10):
        if residual @ residual == 0:
            break
        length = (residual @ residual) / (direction @ matrix @ direction)
        u = u + length * direction
        following = residual - length * (matrix @ direction)
        direction = following + (following @ following) / (residual @ residual) * direction
        residual = following
    found_K = torch.zeros_like(b_K)
    found_K[kept] = u
    return found_K


def _row(w_K: torch.Tensor, hessian_KK: torch.Tensor) -> tuple[torch.Tensor, Path]:
    """W′ of one row, and how it came about."""
    size_K = hessian_KK.diagonal().sqrt()
    scaled_KK = hessian_KK / size_K.outer(size_K)
    b_K, path = _by_admm(w_K * size_K, scaled_KK)
    # An addition to the paper, which takes what ADMM ends with. Its rules for rho are those of a large matrix: of a
    # narrow row every change is a large share, and the end can be worse than the start.
    ended_K, began_K = (_by_conjugate_gradients(from_K, w_K * size_K, scaled_KK) for from_K in (b_K, w_K * size_K))
    ended, began = (_losses((w_K * size_K - d_K)[None], scaled_KK).item() for d_K in (ended_K, began_K))
    return (began_K if began < ended else ended_K) / size_K, path


@pytest.mark.parametrize("shrink", ["yes", "no"])
@pytest.mark.parametrize(("tokens", "K"), [(200, 36), (9, 36), (60, 132), (1, 8)])
def test_alps_is_admm_and_then_conjugate_gradients(tokens: int, K: int, shrink: str) -> None:
    """Fewer tokens than channels too."""
    piece, x_TK = some_weights(8, K), some_inputs(tokens, K)
    x_TK[:, 6] = 0
    hessian_KK = slow_hessian(x_TK, shrink=shrink == "yes")
    found = prune(f"alps:shrink={shrink}", piece, lambda: x_TK).rows(0, 8)
    for row, w_K in zip(found, piece.block(0, 8).index_fill(1, torch.tensor([6]), 0), strict=True):
        torch.testing.assert_close(row, _row(w_K, hessian_KK)[0], rtol=1e-6, atol=1e-7)


def _settled(near: int) -> torch.Tensor:
    """A row of 804 weights whose masks hardly change, but in so many groups where the third is nearly as large."""
    w_K = torch.tensor([1.0, -1.0, 1e-6, 1e-6], dtype=torch.float64).repeat(201)
    w_K[2 : 4 * near : 4] = 0.9
    return w_K


def test_every_row_goes_its_own_way_by_every_rule_for_rho(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer than 800 channels one change is more than 0.5 %."""
    K, paths = 804, defaultdict(list)
    go_on = alps._Rows.go_on

    def watched(self: alps._Rows, step: int) -> bool:
        left = go_on(self, step)
        for row, rho, d_K in zip(self.which_R.tolist(), self.rho_R1[:, 0].tolist(), self.d_RK, strict=True):
            paths[row].append((rho, d_K))
        return left

    monkeypatch.setattr(alps._Rows, "go_on", watched)
    mixed_TK = torch.randn(400, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone_TK, wanted = torch.eye(K, dtype=torch.float64), []
    for w_NK, x_TK in ((some_weights(3, K).block(1, 3), mixed_TK), (torch.stack([_settled(0), _settled(1)]), alone_TK)):
        hessian_KK = 2 / len(x_TK) * x_TK.T @ x_TK
        hessian_KK += 0.01 * hessian_KK.diagonal().mean() * torch.eye(K, dtype=torch.float64)
        paths.clear()
        found = prune("alps:shrink=no", Piece(TensorWeights(w_NK)), lambda given=x_TK: given).rows(0, 2)
        for row, w_K in enumerate(w_NK):
            row_K, path = _row(w_K, hessian_KK)
            torch.testing.assert_close(found[row], row_K, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(paths[row], path, rtol=1e-6, atol=1e-7)
            rhos = [0.1, *(rho for rho, _ in path)]
            wanted.append({round(after / before, 6) for before, after in itertools.pairwise(rhos)})
    assert wanted[0] >= {1.3, 1.2, 1.1}
    assert wanted[2:] == [{0.2}, {0.2}], "from the start, or not"


class _Began(alps.Alps):
    """Stays at the mask that ADMM begins with, and makes the best of that."""

    def _alternated(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        return scaled_RK


@examples(150)
@given(
    K=st.sampled_from([8, 12, 16, 32, 48, 64]),
    T=st.sampled_from([1, 3, 8, 40, 200]),
    mixed=st.sampled_from([0.0, 0.1, 1.0]),
    dead=st.integers(0, 5),
    damping=st.sampled_from([0.1, 0.01, 1e-5]),
    shrink=st.booleans(),
    seed=seeds,
)
def test_no_row_ends_worse_than_it_began(
    K: int, T: int, mixed: float, dead: int, damping: float, shrink: bool, seed: int
) -> None:
    """By what H says is lost."""
    stream = torch.Generator().manual_seed(seed)
    x_TK, mixing_KK = (torch.randn(rows, K, dtype=torch.float64, generator=stream) for rows in (T, K))
    x_TK = x_TK + mixed * x_TK @ mixing_KK
    dead_K = torch.randperm(K, generator=stream)[:dead]
    x_TK[:, dead_K] = 0
    piece, hessian_KK = some_weights(4, K, seed=seed), slow_hessian(x_TK, damping, shrink)
    w_NK = piece.block(0, 4).index_fill(1, dead_K, 0)
    (ended_NK, _), (began_NK, mask_NK) = (
        kind(piece, x_TK, damping, shrink).prune(piece.block(0, 4), 0) for kind in (alps.Alps, _Began)
    )
    sizes_NK = w_NK * hessian_KK.diagonal().sqrt()
    assert torch.equal(mask_NK, torch.stack([_largest(size_K) for size_K in sizes_NK]))
    ended, began, whole = (_losses(missing_NK, hessian_KK) for missing_NK in (w_NK - ended_NK, w_NK - began_NK, w_NK))
    assert (ended <= began * (1 + 1e-6) + 1e-28 * whole).all(), (ended / began).tolist()


@pytest.mark.parametrize("K", [8, 16, 32, 64])
def test_of_a_narrow_layer_it_loses_less_than_wanda(K: int) -> None:
    """On the very inputs that it looked at, where hardly anything is added to what they say."""
    for seed in range(10):
        piece, x_TK = some_weights(4, K, seed=seed), some_inputs(200 + seed, K, correlated=seed % 2 == 0)
        ours, wandas = (
            output_lost(prune(name, piece, lambda given=x_TK: given), piece, x_TK)
            for name in ("alps:shrink=no:damping=1e-06", "wanda")
        )
        assert ours <= wandas * (1 + 1e-6), seed


def test_it_is_near_the_best_of_all_masks() -> None:
    """Each with its own best weights: 216 masks of 12 channels."""
    piece, x_TK = some_weights(40, 12), some_inputs(300, 12)
    hessian_KK, sixes = x_TK.T @ x_TK, list(itertools.combinations(range(4), 2))
    bests = torch.full((40,), torch.inf, dtype=torch.float64)
    w_NK = piece.block(0, 40)
    for groups in itertools.product(sixes, repeat=3):
        kept = [4 * at + k for at, group in enumerate(groups) for k in group]
        best_NK = torch.zeros_like(w_NK)
        best_NK[:, kept] = torch.linalg.solve(hessian_KK[kept][:, kept], (w_NK @ hessian_KK)[:, kept].T).T
        bests = torch.minimum(bests, _losses(w_NK - best_NK, hessian_KK))
    alps, sparsegpt = (
        _losses(w_NK - prune(f"{name}:damping=1e-6:shrink=no", piece, lambda: x_TK).rows(0, 40), hessian_KK) / bests
        for name in ("alps", "sparsegpt")
    )
    assert alps.min() > 1 - 1e-9
    assert alps.median() < 1.2 < 0.5 * sparsegpt.median()


def _losses(missing_NK: torch.Tensor, hessian_KK: torch.Tensor) -> torch.Tensor:
    return (missing_NK @ hessian_KK * missing_NK).sum(1)
