"""A permutation of the input channels: at least as good as the published searches, the best where all can be tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
import torch

from blockshock.errors import InputError
from blockshock.matrices.mask_checks import check_2to4, check_transposable
from blockshock.matrices.permuted import PermutedWeights, in_own_order
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights
from blockshock.matrices.workloads import build_workload
from blockshock.pruning import (
    PRUNERS,
    Pruner,
    base,
    check_mask,
    mask_of,
    permutation,
    permutation_of,
    prune,
    pruner_of,
)
from blockshock.pruning.permutation import retained, search

PERMUTED = [name for name in PRUNERS.names() if PRUNERS.get(name).permutes]


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", (8, 8))


def _scores(K: int, N: int, seed: int) -> torch.Tensor:
    return torch.rand(K, N, generator=torch.Generator().manual_seed(seed))


# The search -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def golden() -> torch.Tensor:
    """The matrix of ASP's tests (apex, contrib/sparsity/permutation_search_kernels), (K, N)."""
    return torch.from_numpy(np.random.RandomState(1).rand(128, 64).T.astype(np.float32)).contiguous()


def test_asps_golden_matrix(golden: torch.Tensor) -> None:
    """Their best, over all regroupings of 12 columns, keeps 2921.947; of 8, 2919.757; by swaps of two, 2913.352."""
    assert golden.sum(dtype=torch.float64).item() == pytest.approx(4083.169, abs=1e-3)
    assert retained(golden, torch.arange(64)) == pytest.approx(2852.377, abs=1e-3)
    assert retained(golden, permutation._dealt(golden).flatten()) == pytest.approx(2861.18, abs=0.01)
    assert retained(golden, search(golden)) >= 2921.947


def _no_exchange(patch: pytest.MonkeyPatch) -> None:
    """What groups gave up goes back to where it was."""
    patch.setattr(permutation, "assign", lambda value_SS: np.arange(len(value_SS)))


def _the_second_for_the_largest(patch: pytest.MonkeyPatch) -> None:
    given = permutation._two_of_three
    patch.setattr(permutation, "_two_of_three", lambda score, three: given(score, three)[::-1])


@pytest.mark.parametrize("fault", [_no_exchange, _the_second_for_the_largest])
def test_a_search_that_lacks_something_does_not_get_there(
    fault: Callable[[pytest.MonkeyPatch], None], golden: torch.Tensor
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ROUNDS", (400, 400))
        fault(patch)
        found = search(golden)
    assert retained(golden, found) < 2915


def test_it_gets_out_of_where_no_exchange_leads_on(golden: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", (500, 500))
    found = [retained(golden, search(golden, seed)) for seed in range(4)]
    monkeypatch.setattr(permutation, "_shuffled", lambda groups, stream: groups)
    stayed = [retained(golden, search(golden, seed)) for seed in range(4)]
    assert sum(found) > sum(stayed)


def _groupings(columns: list[int]) -> Iterator[list[int]]:
    """All ways to put columns into groups of four."""
    if not columns:
        yield []
        return
    first, *rest = columns
    for three in combinations(rest, 3):
        for others in _groupings([column for column in rest if column not in three]):
            yield [first, *three, *others]


@pytest.mark.parametrize(("K", "ways", "worst"), [(4, 1, 1.0), (8, 35, 1.0), (12, 5775, 0.999)])
def test_what_all_ways_together_have_to_offer(K: int, ways: int, worst: float) -> None:
    orders = torch.tensor(list(_groupings(list(range(K)))))
    assert len(orders) == ways
    for seed in range(6):
        score_KN = _scores(K, 3 + seed, seed)
        four_WG4N = score_KN[orders].unflatten(1, (-1, 4))
        most = four_WG4N.topk(2, dim=2).values.sum((1, 2, 3)).max().item()
        assert worst * most * (1 - 1e-6) <= retained(score_KN, search(score_KN, seed)) <= most * (1 + 1e-6)


def test_it_is_never_worse_than_no_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where W's own order is the best there is, dealing the columns out would only lose."""
    monkeypatch.setattr(permutation, "ROUNDS", (100, 100))
    score_KN = torch.zeros(32, 8)
    score_KN[0::4], score_KN[1::4] = 1.0, torch.linspace(0.5, 1, 8)[:, None]
    assert retained(score_KN, search(score_KN)) == retained(score_KN, torch.arange(32))
    assert torch.equal(search(torch.zeros(16, 4)), torch.arange(16))


def test_more_groups_than_are_dealt_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "GROUPS", 5)
    monkeypatch.setattr(permutation, "ROUNDS", (100, 100))
    score_KN = _scores(4 * 23, 40, 0)  # five parts of four groups, and three groups left over in each round
    found = search(score_KN)
    assert torch.equal(found.sort().values, torch.arange(92))
    assert retained(score_KN, found) > 1.02 * retained(score_KN, torch.arange(92))


@pytest.mark.usefixtures("few_rounds")
def test_the_same_again() -> None:
    score_KN = _scores(128, 60, 0)
    assert torch.equal(search(score_KN, 5), search(score_KN, 5))
    assert not torch.equal(search(score_KN, 5), search(score_KN, 6))


def test_a_search_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(score_KN: torch.Tensor, seed: int) -> torch.Tensor:
        calls.append(seed)
        return torch.randperm(len(score_KN))

    monkeypatch.setattr(permutation, "search", counted)
    monkeypatch.setattr(permutation, "_found", {})
    monkeypatch.setattr(permutation, "REMEMBERED", 2)
    one, other, third = (TensorWeights(torch.randn(8, 16), seed=seed) for seed in range(3))
    spec = "magnitude:permute=yes"
    found = permutation_of(spec, one, None)
    assert found is not None
    found_again = permutation_of(spec, one, None)
    assert torch.equal(found, found_again)  # type: ignore[arg-type]
    found.zero_()  # its own copy
    assert torch.equal(permutation_of(spec, one, None), found_again)  # type: ignore[arg-type]
    assert calls == [0]
    for source in (other, third, one):
        permutation_of(spec, source, None)
    assert calls == [0, 1, 2, 0], "the oldest went"
    assert len(permutation._found) == 2


# Pruners --------------------------------------------------------------------------------------------------------------


def _piece(N: int = 24, K: int = 32, dtype: torch.dtype = torch.float32) -> Piece:
    w_NK = torch.randn(N, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return Piece(TensorWeights(w_NK))


def _inputs(K: int = 32) -> torch.Tensor:
    return torch.randn(50, K, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, K)


@pytest.mark.parametrize("name", PERMUTED)
@pytest.mark.usefixtures("few_rounds")
def test_every_pruner_with_scores_can_permute(name: str) -> None:
    """W′ and its mask are those of W and of inputs whose channels are permuted by hand."""
    piece, x_TK = _piece(), _inputs()
    found = prune(f"{name}:permute=yes", piece, lambda: x_TK)
    order_K = found.permutation
    assert order_K is not None
    assert torch.equal(order_K.sort().values, torch.arange(32))
    assert not torch.equal(order_K, torch.arange(32))
    check_2to4(found.mask)
    if PRUNERS.get(name).transposable:
        check_transposable(found.mask)
    by_hand = prune(name, Piece(PermutedWeights(piece.source, order_K)), lambda: x_TK[:, order_K])
    assert torch.equal(found.rows(0, 24), by_hand.rows(0, 24))
    own, again = in_own_order(found, order_K), piece.block(0, 24)
    assert own.mask is not None
    kept_NK = own.mask.dense()
    assert torch.equal(own.rows(0, 24)[:, order_K], found.rows(0, 24))
    assert torch.equal(own.rows(0, 24) != 0, kept_NK)
    if name in ("magnitude", "wanda"):
        assert torch.equal(own.rows(0, 24), again * kept_NK)


@pytest.mark.usefixtures("few_rounds")
def test_inputs_in_w_s_own_order_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given = base.calibration
    monkeypatch.setattr(
        "blockshock.pruning.pruned.calibration", lambda spec, piece, inputs, _: given(spec, piece, inputs)
    )
    with pytest.raises(AssertionError):
        test_every_pruner_with_scores_can_permute("wanda")


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
@pytest.mark.usefixtures("few_rounds")
def test_parts_are_parts_of_the_whole(name: str) -> None:
    """One permutation goes for all of W, however it is cut: x is gathered once."""
    spec, piece, x_TK = f"{name}:permute=yes", _piece(), _inputs()
    whole = prune(spec, piece, lambda: x_TK)
    part = prune(spec, Piece(piece.source, slice(8, 28), rows=slice(4, 20)), lambda: x_TK)
    assert torch.equal(part.rows(0, 16), whole.rows(4, 20)[:, 8:28])
    assert torch.equal(part.mask.dense(), whole.mask.rows(4, 20)[:, 8:28])
    assert part.permutation is not None
    assert torch.equal(part.permutation, whole.permutation)  # type: ignore[arg-type]
    assert permutation_of(name, piece.source, lambda: x_TK) is None


@pytest.mark.parametrize(("name", "by"), [("magnitude", "kept_magnitude"), ("wanda", "error")])
def test_a_trained_layer_loses_less(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the recorded one, on the inputs that met it and that no pruner saw."""
    monkeypatch.setattr(permutation, "ROUNDS", (16, 16))
    recorded, size = build_workload("recorded"), (384, torch.float32, torch.device("cpu"), 0)
    w_NK = recorded.weights(1536, *size).rows(0, 384)
    x_BK, x_TK = recorded.inputs(256, *size, 1536), recorded.calibration(512, *size, 1536, 256)
    lost = []
    for spec in (name, f"{name}:permute=yes"):
        found = prune(spec, Piece(TensorWeights(w_NK)), lambda: x_TK)
        own_NK = in_own_order(found, found.permutation).rows(0, 384)
        error = (x_BK @ (own_NK - w_NK).T).norm() / (x_BK @ w_NK.T).norm()
        lost.append((-own_NK.abs().sum() if by == "kept_magnitude" else error).item())
    assert lost[1] < lost[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.usefixtures("few_rounds")
def test_scores_of_any_size_are_searched_by(dtype: torch.dtype) -> None:
    """Squares of the smallest are zero in half of the dtypes, sums of the largest infinite in all."""
    w_NK = _piece(dtype=dtype).block(0, 24)
    wanted = permutation_of("magnitude:permute=yes", TensorWeights(w_NK), None)
    assert wanted is not None
    for scale in (2.0**-9, 2.0**9):
        found = permutation_of("magnitude:permute=yes", TensorWeights(w_NK * scale), None)
        assert torch.equal(found, wanted)  # type: ignore[arg-type]
    huge = TensorWeights(torch.full_like(w_NK, torch.finfo(dtype).max).masked_fill(w_NK < 0.5, 0))
    assert permutation_of("magnitude:permute=yes", huge, None) is not None


def test_scores_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scoring(Pruner):
        def scores(self, w_RK: torch.Tensor) -> torch.Tensor:
            return w_RK

    monkeypatch.setitem(PRUNERS._entries, "scoring", Scoring)
    with pytest.raises(InputError, match="pruner scoring:permute=yes: scores gives a finite number of at least 0"):
        prune("scoring:permute=yes", _piece())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "1100:permute=yes",
            "pruner 1100:permute=yes: what it keeps does not depend on the weights.*, or take .*wanda",
        ),
        ("random:permute=yes", "no permutation raises it"),
        ("magnitude:permute=2", "permute takes yes or no, not '2'"),
        ("sparsegpt:alpha=2", "the pruner 'sparsegpt' takes .*permute, not 'alpha'"),
    ],
)
def test_what_cannot_be_permuted_says_why(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        prune(spec, _piece())


def test_halves_are_not_permuted() -> None:
    """The two of them are W, whose channels would each have to be in two orders."""
    for spec, says in (
        ("wanda:permute=yes", "mask wanda:permute=yes: halves are cut in W's own order of channels"),
        ("magnitude:permute=yes", "the mask 'magnitude' takes no parameter, not 'permute'"),
    ):
        with pytest.raises(InputError, match=says):
            check_mask(spec)
        with pytest.raises(InputError, match=says):
            mask_of(spec, _piece().source, _inputs)


def test_what_needs_what_says_so() -> None:
    with pytest.raises(InputError, match="K must be a multiple of 4"):
        prune("magnitude:permute=yes", _piece(K=30))
    with pytest.raises(InputError, match="pruner wanda:permute=yes needs calibration inputs"):
        permutation_of("wanda:permute=yes", _piece().source, None)
    assert prune("magnitude:permute=no", _piece()).permutation is None
    assert pruner_of("sparsegpt:damping=1:permute=yes") == (PRUNERS.get("sparsegpt"), {"damping": 1.0}, True)
