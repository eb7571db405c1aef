"""Products of a 2:4 W that is packed anew at each step: right as x and the product may lie, by what was searched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt, sparse_mm
from gpus import needs_a_gpu
from strategies import matrix

from blockshock.errors import KernelUnavailable
from blockshock.kernels import cusparselt_anew
from blockshock.kernels.cusparselt_anew import _setting, times_packed
from blockshock.kernels.cusparselt_search import DEFAULT, Found, Request, Setting, _search_anew
from blockshock.kernels.octaves import octave_of
from blockshock.machine import torch_internals
from blockshock.training.sparse import mask_24

__all__ = ["fake_cusparselt"]

CPU = torch.device("cpu")
SEVEN = (7, 2, 0)
LIES = list(itertools.product(["rows", "columns"], [False, True], [False, True]))


def _product(tokens_are: str, x_turned: bool, y_turned: bool, T: int, device: str) -> tuple[torch.Tensor, ...]:
    """What ``times_packed`` gives, the product in float64, and a bound of each of its errors."""
    N, K, C = (T, 128, 48) if tokens_are == "rows" else (128, T, 48)
    w_NK, x_KC = (matrix(*shape, torch.bfloat16, T, device=device) for shape in ((N, K), (K, C)))
    w_NK = w_NK.where(mask_24(w_NK), 0)
    x_KC = x_KC.T.contiguous().T if x_turned else x_KC
    found = times_packed(torch_internals.compress(w_NK), N, x_KC, tokens_are, "grad_w", y_turned)
    assert found.is_contiguous()
    right, sizes = (w @ x for w, x in ((w_NK.double(), x_KC.double()), (w_NK.double().abs(), x_KC.double().abs())))
    return found, right.T if y_turned else right, (sizes.T if y_turned else sizes) * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("tokens_are", "x_turned", "y_turned"), LIES)
@pytest.mark.usefixtures("fake_cusparselt")
def test_products_are_right(tokens_are: str, x_turned: bool, y_turned: bool) -> None:
    found, right, bound = _product(tokens_are, x_turned, y_turned, 64, "cpu")
    assert bool(((found.double() - right).abs() <= bound).all())


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(("tokens_are", "x_turned", "y_turned"), LIES)
def test_products_are_right_on_a_gpu(
    tokens_are: str, x_turned: bool, y_turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cusparselt_anew, "WORTH", 0)
    for T in (16, 80, 128):
        found, right, bound = _product(tokens_are, x_turned, y_turned, T, "cuda")
        assert bool(((found.double() - right).abs() <= bound).all()), T


@pytest.mark.parametrize(("tokens_are", "x_turned", "y_turned"), LIES)
@pytest.mark.parametrize("wrong_at", [None, 80, 128])
@pytest.mark.usefixtures("fake_cusparselt")
def test_an_algorithm_must_be_right_for_the_fewest_and_the_most_tokens(
    tokens_are: str, x_turned: bool, y_turned: bool, wrong_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool]] = []

    def search(packed: torch.Tensor, x_KB: torch.Tensor, *_: Any, turned: bool = True) -> Sequence[int]:
        asked.append((x_KB.T.is_contiguous(), turned))
        return SEVEN

    def multiply(packed: torch.Tensor, x_KB: torch.Tensor, bias: None, setting: Setting, turned: bool) -> torch.Tensor:
        tokens = len(packed) if tokens_are == "rows" else len(x_KB)
        found = sparse_mm(packed, x_KB, transpose_result=turned)
        return -found if setting == SEVEN and tokens == wrong_at else found

    monkeypatch.setattr(torch_internals, "search", search)
    monkeypatch.setattr(torch_internals, "sparse_mm", multiply)
    N, K = (128, 64) if tokens_are == "rows" else (64, 128)
    request = Request(N, K, 48, 80, "bfloat16", False, "", "", tokens_are, x_turned, y_turned)
    found = _search_anew(request, CPU)
    assert found == (Found(SEVEN) if wrong_at is None else Found(DEFAULT, (SEVEN,)))
    assert asked == [(x_turned, y_turned)]


def test_lengths_of_an_octave_share_a_search_and_nothing_wrong_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def searched(key: str, device: torch.device, request: Request) -> Found:
        asked.append(request)
        return Found(None, (DEFAULT,)) if request.K == 32 else Found(SEVEN)

    monkeypatch.setattr(cusparselt_anew, "searched", searched)
    _setting.cache_clear()
    for tokens in (80, 96, 128):
        least, most = octave_of(tokens, cusparselt_anew.MULTIPLE)
        assert _setting(most, 64, 48, least, torch.bfloat16, CPU, "rows", True, False) == SEVEN
    assert asked == [Request(128, 64, 48, 80, "bfloat16", False, "", "", "rows", True, False)]
    with pytest.raises(
        KernelUnavailable, match=r"2:4 \(64, 32\) whose columns are tokens, times \(32, 8\) of bfloat16"
    ):
        _setting(64, 32, 8, 32, torch.bfloat16, CPU, "columns", False, False)
