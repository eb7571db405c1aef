"""Gradients of the columns that two halves keep, put together: each in its place, by one copy where that will do."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from counting import run_in

from blockshock.matrices import ColumnsOfHalves, Every

FIRST = list(combinations(range(4), 2))
IN_ONE_COPY = [(0, 1), (0, 2)]
FEW, MANY = 5, 600
"""Tokens, of whose gradients some move by element and some in larger words."""


def halves(first: tuple[int, ...]) -> tuple[Every, Every]:
    return Every(first, 4), Every(tuple(sorted({0, 1, 2, 3} - set(first))), 4)


def stacked_and_whole(
    first: tuple[int, ...], ranks: int, tokens: int, groups: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shards one below the other, and what they come to by one index an element."""
    K = 4 * groups * (ranks // 2)
    whole = torch.arange(tokens * K).remainder(251).view(tokens, K).to(dtype)
    kept, S = halves(first), 4 * groups
    shards = [whole[:, [rank // 2 * S + c for c in kept[rank % 2].columns(S)]] for rank in range(ranks)]
    return torch.cat(shards), whole


@pytest.mark.parametrize("first", FIRST, ids=str)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_each_element_comes_to_its_place(first: tuple[int, ...], ranks: int, dtype: torch.dtype) -> None:
    place = ColumnsOfHalves(*halves(first))
    for tokens in (0, 1, FEW, MANY):
        for groups in (1, 3, 8):
            stacked, whole = stacked_and_whole(first, ranks, tokens, groups, dtype)
            found = place.joined(stacked, ranks)
            assert found.is_contiguous()
            assert found.dtype == dtype
            assert torch.equal(found, whole)
            put = torch.full_like(whole, -1)
            place.put(list(stacked.chunk(ranks)), put)
            assert torch.equal(put, whole)


@pytest.mark.parametrize("first", FIRST, ids=str)
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_halves_whose_columns_lie_in_turn_are_one_copy(first: tuple[int, ...], tokens: int) -> None:
    stacked, _ = stacked_and_whole(first, 4, tokens, 8, torch.bfloat16)
    ran = run_in(lambda: ColumnsOfHalves(*halves(first)).joined(stacked, 4))
    assert (ran.count("clone"), ran.count("copy_")) == ((1, 0) if first in IN_ONE_COPY else (0, 4))
