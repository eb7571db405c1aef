"""Errors against float64: what passes, and that wrong results of every kind do not."""

import math

import pytest
import torch
from torch.nn import functional as F

from blockshock.matrices.weights import GeneratedWeights, TensorWeights, WeightSource
from blockshock.measure.accuracy import Accuracy, ErrorSums, compare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _product(dtype: torch.dtype, with_bias: bool = False) -> tuple[torch.Tensor, torch.Tensor, GeneratedWeights]:
    source = GeneratedWeights(96, 128, dtype, "cpu", seed=3, with_bias=with_bias)
    x_BK = torch.randn(16, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    return F.linear(x_BK, source.rows(0, 96), source.bias), x_BK, source


def _accuracy(y_BN: torch.Tensor, x_BK: torch.Tensor, source: WeightSource, ranks: int = 1) -> Accuracy:
    return Accuracy.of(sum((compare(y_BN, x_BK, source, 2, rank, ranks) for rank in range(ranks)), ErrorSums()), 2)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dense_product_passes_with_an_error_of_its_own_size(dtype: torch.dtype, with_bias: bool) -> None:
    accuracy = _accuracy(*_product(dtype, with_bias))
    assert accuracy.failure() is None
    assert accuracy.error_ratio <= 1.0
    assert 0 < accuracy.of_bound < 1


def test_errors_are_those_against_float64() -> None:
    y_BN, x_BK, source = _product(torch.bfloat16)
    exact_BN = x_BK.double() @ source.rows(0, 96).double().T
    error_BN = y_BN.double() - exact_BN
    accuracy = _accuracy(y_BN, x_BK, source)
    assert accuracy.max_error == error_BN.abs().max().item()
    assert accuracy.mean_error == pytest.approx(error_BN.abs().mean().item())
    assert accuracy.relative_error == pytest.approx((error_BN.norm() / exact_BN.norm()).item())


def test_an_output_that_should_be_zero_is_right_only_where_it_is() -> None:
    right, wrong = (Accuracy.of(ErrorSums(count=4, squared=squared), 1) for squared in (0.0, 1e-30))
    assert (right.relative_error, right.error_ratio, right.failure()) == (0.0, 1.0, None)
    assert (wrong.relative_error, wrong.error_ratio) == (math.inf, math.inf)
    assert wrong.failure() is not None


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(torch.float32, 2**-24 * (128 / 6) ** 0.5), (torch.bfloat16, 2**-8 / 7**0.5)]
)
def test_the_yardstick_allows_for_any_order_of_summation_and_is_no_lucky_rounding(
    dtype: torch.dtype, wanted: float
) -> None:
    """u·√(K/6) of the size of y, the error of adding K products one after the other; u·√(1/7), of rounding once."""
    y_BN, x_BK, source = _product(dtype)
    assert compare(y_BN, x_BK, source, 1, 0, 1).least_dense_error == pytest.approx(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_single_element_by_two_halves_is_right(dtype: torch.dtype) -> None:
    """Where the dense product's rounding came near to nothing, theirs is many times as large, and as it must be."""
    stream = torch.Generator().manual_seed(0)
    for _ in range(400):
        w_NK, x_BK = (torch.randn(1, 64, generator=stream).to(dtype) for _ in range(2))
        halves = [
            (x_BK.float() * kept @ w_NK.float().T).to(dtype)
            for kept in torch.tensor([[1.0, 1, 0, 0] * 16, [0.0, 0, 1, 1] * 16])
        ]
        sums = compare(halves[0] + halves[1], x_BK, TensorWeights(w_NK, None), 3, 0, 1)
        assert Accuracy.of(sums, 3).failure() is None


def test_shares_of_the_ranks_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    product = _product(torch.bfloat16)
    whole = _accuracy(*product)
    monkeypatch.setattr(
        "blockshock.measure.accuracy.row_blocks", lambda rows, _, **__: [(i, i + 8) for i in range(0, rows, 8)]
    )
    in_shares = _accuracy(*product, ranks=3)
    assert in_shares.max_error == whole.max_error
    assert in_shares.of_bound == pytest.approx(whole.of_bound)
    assert in_shares.relative_error == pytest.approx(whole.relative_error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_twice_the_error_of_the_dense_product_fails(dtype: torch.dtype) -> None:
    y_BN, x_BK, source = _product(dtype)
    exact_BN = (x_BK.double() @ source.rows(0, 96).double().T).to(torch.float64)
    # In float32 the yardstick allows for the worst order of summation, which the product at hand is far from.
    times = 30 if dtype == torch.float32 else 3
    worse_BN = (exact_BN + times * (y_BN.double() - exact_BN)).to(dtype)
    failure = _accuracy(worse_BN, x_BK, source).failure()
    assert failure is not None
    assert "times the dense product's" in failure


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_element_that_is_not_finite_fails(value: float) -> None:
    y_BN, x_BK, source = _product(torch.bfloat16)
    y_BN[3, 5] = value
    assert _accuracy(y_BN, x_BK, source).failure() is not None


def test_one_wrong_element_among_many_is_outside_its_bound() -> None:
    source = GeneratedWeights(4096, 256, torch.bfloat16, "cpu")
    x_BK = torch.randn(256, 256).bfloat16()
    y_BN = F.linear(x_BK, source.rows(0, 4096))
    y_BN[200, 4000] += 0.5
    accuracy = _accuracy(y_BN, x_BK, source)
    assert accuracy.error_ratio < 2, "the single element is not to be found in the norm"
    assert "forward error bound" in (accuracy.failure() or "")


def _limit(roundings: int, x_BK: torch.Tensor) -> float:
    source = GeneratedWeights(96, 128, torch.float32, "cpu", seed=3)
    y_BN = F.linear(x_BK, source.rows(0, 96))
    return Accuracy.of(compare(y_BN, x_BK, source, roundings, 0, 1), roundings).error_ratio_limit


def test_the_limit_is_twice_for_one_product_and_grows_with_partial_sums_and_their_cancellation() -> None:
    x_BK = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    assert _limit(1, x_BK) == pytest.approx(2.0, rel=0.06)
    assert _limit(2, x_BK) == pytest.approx(2.0, rel=0.06)
    assert _limit(8, x_BK) == pytest.approx(4.0, rel=0.06)
    w_NK = GeneratedWeights(96, 128, torch.float32, "cpu", seed=3).rows(0, 96)
    # x along one row of W, with one half of the columns turned round: the two partial sums nearly cancel there.
    turned_BK = torch.cat((w_NK[:1, :64] / w_NK[:1, :64].norm(), -w_NK[:1, 64:] / w_NK[:1, 64:].norm()), dim=1)
    one_row = _limit(2, x_BK[:1])
    assert _limit(2, 100 * turned_BK + x_BK[:1]) > 1.05 * one_row
    # One element as large as a thousand others: an error of a few roundings is then a matter of chance.
    assert one_row < _limit(2, 1000 * w_NK[:1] + x_BK[:1])


def test_what_cancels_in_the_sum_of_one_product_makes_no_room() -> None:
    """Of partial sums that nearly cancel the roundings show; one product is rounded once, after its sum."""
    w_NK = GeneratedWeights(96, 128, torch.float32, "cpu", seed=3).rows(0, 96)
    x_BK = torch.randn(1, 128, generator=torch.Generator().manual_seed(2))
    signs_K = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(32)
    turned_BK = x_BK + 20 * signs_K * w_NK[:1]
    assert _limit(2, turned_BK) > 1.1 * _limit(1, turned_BK)


@pytest.mark.parametrize(("steps", "passes"), [(0, True), (1, True), (2, False)])
def test_what_underflows_may_be_off_by_the_smallest_number(steps: int, passes: bool) -> None:
    """Of fp16, a column of W so small that its products are subnormal: rounded twice, each time by half of 2⁻²⁴."""
    w_NK = torch.ones(64, 64)
    w_NK[:, ::2] = -1
    w_NK[0] *= 1e-4
    source = TensorWeights(w_NK.half())
    x_BK = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).half()
    x_BK[3] *= 1e-3
    y_BN = (x_BK.double() @ source.rows(0, 64).double().T).half()
    y_BN[3, 0] += steps * 2.0**-24
    assert (_accuracy(y_BN, x_BK, source).failure() is None) == passes


def test_an_output_of_zeros_fails() -> None:
    y_BN, x_BK, source = _product(torch.float32)
    assert _accuracy(torch.zeros_like(y_BN), x_BK, source).failure() is not None


def test_an_exact_zero_output_of_zero_input_passes() -> None:
    y_BN, x_BK, source = _product(torch.bfloat16)
    zero_BK = torch.zeros_like(x_BK)
    assert _accuracy(torch.zeros_like(y_BN), zero_BK, source).failure() is None
    assert _accuracy(torch.full_like(y_BN, 1e-30), zero_BK, source).failure() is not None
