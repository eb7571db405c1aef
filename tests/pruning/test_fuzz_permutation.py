"""Permutations of channels: of any scores, weights and masks, and what is none."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import ANY, FLOATS, LAYOUTS, equal, fours, mask_rows, matrices, matrix, rows, seeds, specs

from blockshock.matrices.masks import DenseMask
from blockshock.matrices.permuted import PermutedMask, PermutedWeights, check_permutation, in_own_order, inverse
from blockshock.matrices.weights import TensorWeights
from blockshock.pruning import PRUNERS, permutation, permutation_of, pruner_of
from blockshock.pruning.assignment import assign
from blockshock.pruning.permutation import retained, search

pytestmark = pytest.mark.reliability


@examples(150)
@given(S=st.integers(1, 6), seed=seeds, kind=st.sampled_from(("normal", "few", "huge", "equal")))
def test_an_assignment_is_the_best_of_all(S: int, seed: int, kind: str) -> None:
    stream = np.random.default_rng(seed)
    value_SS = {"normal": stream.normal(size=(S, S)), "few": stream.integers(0, 3, (S, S)).astype(float)}.get(kind)
    if value_SS is None:
        value_SS = stream.normal(size=(S, S)) * 1e30 if kind == "huge" else np.full((S, S), 0.1)
    found = assign(value_SS)
    assert sorted(found) == list(range(S))
    most = max(sum(value_SS[s, to[s]] for s in range(S)) for to in itertools.permutations(range(S)))
    assert value_SS[range(S), found].sum() == pytest.approx(most)


@examples(30)
@given(K=fours, N=rows, seed=seeds, sparse=st.booleans())
def test_a_search_finds_a_permutation_that_loses_nothing(K: int, N: int, seed: int, sparse: bool) -> None:
    score_KN = matrix(K, N, torch.float32, seed).abs()
    score_KN = (score_KN / score_KN.max()).masked_fill(score_KN < 0.7, 0) if sparse else score_KN / score_KN.max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ROUNDS", (1, 20))
        found = search(score_KN, seed)
    check_permutation(found, K)
    own, most = retained(score_KN, torch.arange(K)), score_KN.sum().item()
    assert own <= retained(score_KN, found) <= most * (1 + 1e-6)


@examples(150)
@given(N=rows, K=fours, dtype=st.sampled_from(FLOATS), layout=st.sampled_from(LAYOUTS), seed=seeds)
def test_what_is_permuted_comes_back(N: int, K: int, dtype: torch.dtype, layout: str, seed: int) -> None:
    source, mask_NK = TensorWeights(matrix(N, K, dtype, seed, layout)), mask_rows(N, K, seed)
    order_K = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    permuted = PermutedWeights(source, order_K)
    assert equal(permuted.rows(0, N), source.rows(0, N)[:, order_K])
    permuted.mask = DenseMask(mask_NK)
    own = in_own_order(permuted, order_K)
    assert equal(own.rows(0, N), source.rows(0, N))
    assert own.mask is not None
    assert torch.equal(own.mask.dense()[:, order_K], mask_NK)
    assert torch.equal(own.mask.ordered.dense(), mask_NK)
    assert torch.equal(inverse(order_K)[order_K], torch.arange(K))
    assert in_own_order(permuted, None) is permuted


@examples(150)
@given(data=st.data(), K=fours)
def test_what_is_no_permutation_is_refused(data: Any, K: int) -> None:
    given_K = data.draw(matrices(st.just(1), st.just(K) | rows, ANY)).squeeze(0)
    fits = given_K.dtype == torch.int64 and sorted(given_K.tolist()) == list(range(K))
    for use in (
        lambda: check_permutation(given_K, K) or True,
        lambda: PermutedMask(DenseMask(mask_rows(3, K, 0)), given_K),
        lambda: PermutedWeights(TensorWeights(torch.ones(3, K)), given_K),
    ):
        assert (attempt(use) is not None) == fits


@examples(150)
@given(spec=specs(PRUNERS.names()), permute=st.sampled_from(("", ":permute=yes", ":permute=no", ":permute=1")))
def test_any_spec_of_a_pruner(spec: str, permute: str) -> None:
    found = attempt(pruner_of, spec + permute)
    if found is None:
        return
    kind, parameters, permutes = found
    assert kind in map(PRUNERS.get, PRUNERS.names())
    assert permutes == permute.endswith("yes")
    assert "permute" not in parameters
    if not permutes:
        assert permutation_of(spec + permute, TensorWeights(torch.ones(4, 8)), None) is None
