"""The unbiased 2:4 estimators beside their formulas: their mean is x, and the variance of one is the least."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from strategies import LAYOUTS, equal, matrix

from blockshock import sparse
from blockshock.errors import InputError

DRAWS = 10**6
GROUPS = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0],
        [-3.0, 0.5, 3.0, 5.0],  # 2a₁ + a₃ ≤ a₄
        [8.0, -1.0, 2.0, 1.0],  # the first larger than the others together
        [0.0, 1.0, -2.0, 2.5],
    ]
)
Estimator = Callable[[torch.Tensor], torch.Tensor]
ESTIMATORS = pytest.mark.parametrize("exact", [False, True])


def ours(exact: bool, seed: int = 0) -> Estimator:
    return lambda x: sparse.mvue_24(x, generator=torch.Generator().manual_seed(seed), exact=exact)


def probabilities(x_G4: torch.Tensor, exact: bool) -> torch.Tensor:
    """Of each number to be kept (G, 4), by the papers' formulas."""
    a_G4 = x_G4.double().abs()
    sums = a_G4.sum(1, keepdim=True)
    if not exact:
        t_G4 = a_G4 / sums
        p_G4 = torch.zeros_like(a_G4)
        for i in range(4):
            p_G4[:, i] = t_G4[:, i]
            for j in range(4):
                if j != i:
                    p_G4[:, i] += t_G4[:, j] * a_G4[:, i] / (sums[:, 0] - a_G4[:, j])
        return p_G4
    largest, where = a_G4.max(1, keepdim=True)
    others = sums - largest
    return torch.where(largest > others, (a_G4 / others).scatter(1, where, 1.0), 2 * a_G4 / sums)


def variance(x_G4: torch.Tensor, p_G4: torch.Tensor) -> torch.Tensor:
    """Of a group's numbers together: Σ x²/p − x²."""
    squares = x_G4.double().square()
    return torch.where(squares > 0, squares / p_G4 - squares, 0).sum(1)


def check_mean(estimator: Estimator, exact: bool, draws: int = DRAWS) -> None:
    """Over many draws it is x, within five standard deviations of a mean of so many; the variance likewise."""
    drawn_DG4 = estimator(GROUPS.flatten().expand(draws, -1)).double().unflatten(1, (-1, 4))
    error = (drawn_DG4.mean(0) - GROUPS).abs()
    spread = (
        (GROUPS.double().square() / probabilities(GROUPS, exact) - GROUPS.double().square()).clamp(min=0).nan_to_num()
    )
    assert (error <= 5 * (spread / draws).sqrt() + 1e-6 * GROUPS.abs()).all()
    found = (drawn_DG4 - GROUPS).square().sum(2).mean(0)
    torch.testing.assert_close(found, variance(GROUPS, probabilities(GROUPS, exact)), rtol=0.02, atol=1e-6)


def dominated_as_if_not(x: torch.Tensor) -> torch.Tensor:
    """S/2 for all that is kept, of an a₄ that is larger than the others together too."""
    groups = x.unflatten(1, (-1, 4))
    half = groups.abs().sum(2, keepdim=True) / 2
    ends = (groups.abs() / half).clamp(max=1).cumsum(2)
    at = torch.rand(half.shape, generator=torch.Generator().manual_seed(0))
    kept = torch.stack([(ends <= at).sum(2), (ends <= at + 1).sum(2).clamp(max=3)], 2).flatten(2)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(2, kept, True)
    return (groups.sign() * half).where(mask, 0).flatten(1)


def half_of_p24(x: torch.Tensor) -> torch.Tensor:
    """As ``legacy.MVUE24``: where 2a₁ + a₃ ≤ a₄, a₂ and a₄ together have half of their probability, a₃ and a₄ the rest.

    Right of all else.
    """
    right = ours(exact=True)(x)
    groups, at = (
        x.unflatten(1, (-1, 4)),
        torch.rand(len(x), x.shape[1] // 4, generator=torch.Generator().manual_seed(1)),
    )
    (a1, a2, a3, a4), order = (sorted_ := groups.abs().sort(2)).values.unbind(2), sorted_.indices
    total = a1 + a2 + a3 + a4
    p14, p23, p24 = 2 * a1 / total, (a1 + a2 + a3 - a4) / total, (a2 + a4 - a1 - a3) / total / 2
    pair = (at >= p14).int() + (at >= p14 + p23) + (at >= p14 + p23 + p24)
    kept = torch.tensor([[0, 3], [1, 2], [1, 3], [2, 3]])[pair]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(2, order.gather(2, kept), True)
    wrong = (groups.sign() * total[..., None] / 2).where(mask, 0)
    where = (2 * a1 + a3 <= a4) & (a4 <= a1 + a2 + a3)
    return torch.where(where[..., None], wrong, right.unflatten(1, (-1, 4))).flatten(1)


@ESTIMATORS
def test_its_mean_is_x_and_its_variance_that_of_the_formula(exact: bool) -> None:
    check_mean(ours(exact), exact)


@pytest.mark.parametrize("biased", [dominated_as_if_not, half_of_p24])
def test_a_biased_estimator_is_caught(biased: Estimator) -> None:
    with pytest.raises(AssertionError):
        check_mean(biased, True, DRAWS // 10)


def test_no_probabilities_give_less_variance() -> None:
    """Of all with a sum of two and none above one, on a grid."""
    steps = torch.arange(1, 51, dtype=torch.float64) / 50
    p_P4 = torch.cartesian_prod(steps, steps, steps)
    p_P4 = torch.cat([p_P4, 2 - p_P4.sum(1, keepdim=True)], 1)
    p_P4 = p_P4[(p_P4[:, 3] > 0) & (p_P4[:, 3] <= 1 + 1e-9)]
    least = variance(GROUPS, probabilities(GROUPS, exact=True))
    for group, wanted in zip(GROUPS, least, strict=True):
        found = variance(group.expand(len(p_P4), -1), p_P4).min()
        assert wanted - 1e-6 <= found <= 1.1 * wanted + 0.1


def test_on_gaussians_the_approximate_one_has_six_percent_more_variance() -> None:
    x = torch.randn(1000, 2000, generator=torch.Generator().manual_seed(2))
    exact, approximate = ((ours(kind)(x) - x).square().mean() for kind in (True, False))
    assert 1.05 < float(approximate / exact) < 1.07


@ESTIMATORS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_groups_of_two_stay_and_those_of_zeros_are_zeros(exact: bool, dtype: torch.dtype) -> None:
    """Of the largest and the smallest numbers too."""
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    x = torch.tensor(
        [
            [0, 0, 0, 0],
            [0, -info.max, 0, 0],
            [subnormal, 0, 0, 0],
            [0, info.max, 0, -info.max],
            [0, 0, -subnormal, 4 * subnormal],
        ],
        dtype=dtype,
    )
    torch.testing.assert_close(ours(exact)(x), x, rtol=2 * info.eps, atol=0)


@ESTIMATORS
def test_small_and_large_numbers_are_as_those_between(exact: bool) -> None:
    """Where sums or products in their own dtype would be zero or inf."""
    for dtype, scale in (
        (torch.float16, 2.0**-20),
        (torch.float16, 2.0**13),
        (torch.float32, 2.0**125),
        (torch.float32, 2.0**-140),
    ):
        x = torch.tensor([1.0, -2, 3, 1.5], dtype=dtype).expand(1000, -1)
        torch.testing.assert_close(ours(exact)(x * scale) / scale, ours(exact)(x), rtol=0.2, atol=0)
        assert equal(ours(exact)(x * scale) != 0, ours(exact)(x) != 0)


@ESTIMATORS
def test_what_is_not_finite_stays_so(exact: bool) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        for at in range(4):
            x = torch.tensor([[1.0, -2, 0, 1.5]]).repeat(50, 2)
            x[:, at] = bad
            drawn = ours(exact)(x)
            assert (~drawn[:, :4].isfinite()).any(1).all()
            assert drawn[:, 4:].isfinite().all()
    largest = torch.full((8, 4), 60000.0, dtype=torch.float16)
    assert (ours(exact)(largest).isinf().sum(1) == 2).all(), "S/2, which fp16 does not have"


@ESTIMATORS
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_a_seed_makes_the_bits_along_any_dimension(exact: bool, dim: int) -> None:
    x = torch.randn(8, 12, 4, generator=torch.Generator().manual_seed(3))
    stream = torch.Generator().manual_seed(4)
    first, second = (sparse.mvue_24(x, dim, stream, exact) for _ in range(2))
    stream.manual_seed(4)
    assert equal(sparse.mvue_24(x, dim, stream, exact), first)
    assert not torch.equal(first, second)
    assert (first.movedim(dim, -1).reshape(-1, 4) != 0).sum(1).le(2).all()
    torch.manual_seed(5)
    unseeded = sparse.mvue_24(x, dim, exact=exact)
    torch.manual_seed(5)
    assert equal(sparse.mvue_24(x, dim, exact=exact), unseeded)


@ESTIMATORS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_may_lie_as_it_will(exact: bool, layout: str) -> None:
    x = matrix(8, 12, torch.float32, 0, layout)
    assert equal(ours(exact)(x), ours(exact)(x.contiguous().clone()))


@ESTIMATORS
@pytest.mark.parametrize("transposed", [False, True])
def test_each_group_has_a_number_of_its_own(exact: bool, transposed: bool) -> None:
    """The published kernel shares seeds in the layout of a transposed matrix."""
    alike = torch.ones(256, 128).T if transposed else torch.ones(128, 256)
    kept = sparse.mvue_24(alike, 0, torch.Generator().manual_seed(1), exact) != 0
    codes = torch.einsum("gfc,f->gc", kept.unflatten(0, (-1, 4)).float(), torch.tensor([1.0, 2, 4, 8]))
    assert len(set(map(tuple, codes.tolist()))) == len(codes), "rows of groups that drew alike"
    assert len(set(map(tuple, codes.T.tolist()))) == codes.shape[1]


def test_it_takes_no_gradient_and_groups_of_four_alone() -> None:
    assert not sparse.mvue_24(torch.ones(4, requires_grad=True)).requires_grad
    with pytest.raises(InputError, match=r"dimension 1 of x \(4, 6\) must be a multiple of 4"):
        sparse.mvue_24(torch.ones(4, 6))
