"""Masks of the toolkit beside their definitions: the two largest of each four, the best of all 90 tiles exactly."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from strategies import LAYOUTS, matrix

from blockshock import sparse
from blockshock.errors import InputError
from blockshock.matrices import named_masks

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PAIRS = [[column in pair for column in range(4)] for pair in itertools.combinations(range(4), 2)]
"""1100, 1010, 1001, 0110, 0101, 0011: in the documented order."""
PATTERNS = [
    rows for rows in itertools.product(PAIRS, repeat=4) if all(sum(column) == 2 for column in zip(*rows, strict=True))
]


def best(tile: list[list[float]]) -> list[list[bool]]:
    """By brute force over all patterns, in rational numbers; of equal ones the first."""

    def kept(pattern: tuple[list[bool], ...]) -> Fraction:
        return sum((Fraction(abs(tile[i][j])) for i in range(4) for j in range(4) if pattern[i][j]), start=Fraction(0))

    return list(max(PATTERNS, key=kept))


def wide(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Tiles of numbers so far apart that a sum of two is the larger one, in any dtype; and of many equal ones."""
    stream = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-140, 120, (4, 4 * count), generator=stream)
    return torch.where(torch.rand(4, 4 * count, generator=stream) < 0.3, 1.0, torch.exp2(exponents.double())).to(dtype)


def test_all_ninety_are_known() -> None:
    assert len(PATTERNS) == 90
    assert named_masks.transposable_tiles(torch.device("cpu")).tolist() == [list(pattern) for pattern in PATTERNS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ties", "random", "wide"])
def test_no_tile_keeps_more_and_of_equals_the_first_stays(dtype: torch.dtype, kind: str) -> None:
    stream = torch.Generator().manual_seed(1)
    w_RC = {
        "ties": torch.randint(-1, 2, (4, 100), generator=stream).to(dtype),
        "random": torch.randn(4, 100, generator=stream, dtype=torch.float64).to(dtype),
        "wide": wide(25, dtype, 2),
    }[kind]
    w_RC = w_RC.nan_to_num(posinf=float(torch.finfo(dtype).max))
    found = sparse.transposable_mask(w_RC)
    for tile, mask in zip(w_RC.split(4, 1), found.split(4, 1), strict=True):
        assert mask.tolist() == best(tile.tolist())


def test_a_rounding_decides_nothing() -> None:
    """The last digit of one number, against sums that float64 rounds; and a step that no float64 adds."""
    for small in (2.0**-23, 2.0**-60, 2.0**-120):
        tile = torch.tensor([[1, 1, small, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
        assert sparse.transposable_mask(tile).tolist() == best(tile.tolist())
        tile[0] = torch.tensor([1, small, 1, 0])
        assert sparse.transposable_mask(tile).tolist() == best(tile.tolist())


def test_sums_that_are_rounded_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this file asks of the search fails where all is added at once."""
    monkeypatch.setattr(named_masks, "_passes", lambda dtype: 1)
    with pytest.raises(AssertionError):
        test_no_tile_keeps_more_and_of_equals_the_first_stays(torch.float32, "wide")


def test_what_a_graph_runs_is_what_eager_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There nothing is asked of values, so that all digits of all tiles are added."""
    w_RC = torch.cat([wide(50, torch.float32, 3), torch.randn(4, 40, generator=torch.Generator().manual_seed(4))], 1)
    eager = sparse.transposable_mask(w_RC)
    monkeypatch.setattr(named_masks, "_in_a_graph", lambda tensor: True)
    assert torch.equal(sparse.transposable_mask(w_RC), eager)


def test_powers_of_two_are_exact() -> None:
    """Which the search takes for granted."""
    exponents = range(-1074, 1024)
    assert torch.exp2(torch.tensor(exponents, dtype=torch.float64)).tolist() == [2.0**one for one in exponents]


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("signed", [False, True])
def test_the_two_largest_stay_and_the_first_of_equals(dim: int, signed: bool) -> None:
    x = torch.randint(-3, 4, (8, 4, 12), generator=torch.Generator().manual_seed(dim)).float()
    found = sparse.mask_24(x, dim, signed).movedim(dim, -1).reshape(-1, 4)
    for group, mask in zip(x.movedim(dim, -1).reshape(-1, 4).tolist(), found.tolist(), strict=True):
        order = sorted(range(4), key=lambda i: -(group[i] if signed else abs(group[i])))  # stable
        assert [i for i in range(4) if mask[i]] == sorted(order[:2])


@pytest.mark.parametrize("signed", [False, True])
def test_two_stay_whatever_the_numbers(signed: bool) -> None:
    """NaN is inf, which is larger than all else."""
    groups = torch.tensor([*itertools.product((NAN, INF, -INF, 0.0, -0.0, 1.0, -2.0), repeat=4)])
    assert (sparse.mask_24(groups, signed=signed).sum(1) == 2).all()
    assert sparse.mask_24(torch.tensor([[1.0, NAN, 3, NAN], [INF, 5, NAN, 7]])).tolist() == [
        [False, True, False, True],
        [True, False, True, False],
    ]
    tiles = sparse.transposable_mask(groups[:2400])
    assert (tiles.unflatten(0, (-1, 4)).sum(1) == 2).all()
    assert (tiles.sum(1) == 2).all()
    assert sparse.transposable_mask(torch.tensor([[0.0, 0, NAN, 0], [0] * 4, [0] * 4, [0] * 4]))[0, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_may_lie_as_it_will(layout: str) -> None:
    w_RC = matrix(8, 12, torch.float32, 0, layout)
    for mask in (sparse.mask_24, sparse.transposable_mask):
        assert torch.equal(mask(w_RC), mask(w_RC.contiguous().clone()))
        assert mask(w_RC).is_contiguous()


def test_what_has_no_groups_of_four_is_refused() -> None:
    for refused, says in [
        (lambda: sparse.mask_24(torch.ones(4, 6)), r"dimension 1 of x \(4, 6\) must be a multiple of 4"),
        (lambda: sparse.mask_24(torch.ones(4, 4), dim=2), "has no dimension 2: choose from -2 to 1"),
        (lambda: sparse.mask_24(torch.ones(4, dtype=torch.int8)), "got torch.int8: cast it first"),
        (lambda: sparse.transposable_mask(torch.ones(4, 4, 4)), r"of a matrix \(R, C\), got \(4, 4, 4\)"),
        (lambda: sparse.transposable_mask(torch.ones(6, 4)), r"dimension 0 of w \(6, 4\)"),
        (lambda: sparse.transposable_mask(torch.ones(4, 6)), r"dimension 1 of w \(4, 6\)"),
    ]:
        with pytest.raises(InputError, match=says):
            refused()


OF_ONE = {
    "mask_24": sparse.mask_24,
    "transposable_mask": sparse.transposable_mask,
    "mvue_24": sparse.mvue_24,
    "soft_threshold_24": sparse.soft_threshold_24,
    "fixed_scale": sparse.fixed_scale,
    "Sparse24": sparse.Sparse24,
    "by_mvue": sparse.Sparse24.by_mvue,
    "bits_of_mask": sparse.bits_of_mask,
    "mask_of_bits": sparse.mask_of_bits,
    "mask": lambda mask: sparse.Sparse24(torch.ones(4, 4), mask),
    "grad": lambda grad: sparse.masked_decay_(grad, torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool), 0.1),
    "decayed": lambda w: sparse.masked_decay_(torch.ones(4, 4), w, torch.ones(4, 4, dtype=torch.bool), 0.1),
}


@pytest.mark.parametrize("name", OF_ONE)
def test_what_is_no_dense_tensor_is_refused_by_each_part_of_the_toolkit(name: str) -> None:
    for wrong, says in (
        ([[1.0] * 4] * 4, "must be a tensor, got list"),
        (torch.ones(4, 4).to_sparse(), r"must be a dense tensor, this one is torch\.sparse_coo: pass its to_dense\(\)"),
    ):
        with pytest.raises(InputError, match=says):
            OF_ONE[name](wrong)


def test_what_is_no_dimension_generator_bias_or_number_is_refused() -> None:
    w, mask = torch.ones(4, 4), torch.tensor([[True, True, False, False]] * 4)
    for call, says in (
        (lambda: sparse.mask_24(torch.tensor(1.0)), "x is a single number, which has no groups of four"),
        (lambda: sparse.soft_threshold_24(w, "rows"), "dim takes the number of a dimension of w, got 'rows'"),
        (lambda: sparse.mvue_24(w, 1, 3), r"generator= takes a torch\.Generator"),
        (lambda: sparse.masked_decay_(w, w, mask, "much"), "decay takes a number from 0 to"),
        (lambda: sparse.masked_decay_(w[:1].expand(4, 4), w, mask, 0.1), r"an expanded tensor.*pass its clone\(\)"),
        (lambda: torch.nn.functional.linear(w, sparse.Sparse24(w), w[:1]), r"the bias must be \(4,\), got \(1, 4\)"),
    ):
        with pytest.raises(InputError, match=says):
            call()  # type: ignore[no-untyped-call]


def test_bits_are_those_of_each_tile() -> None:
    mask = torch.rand(12, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = sparse.bits_of_mask(mask)
    for row, column in itertools.product(range(12), range(20)):
        tile = bits[row // 4, column // 4].item()
        assert tile >> (4 * (row % 4) + column % 4) & 1 == mask[row, column]
    for one in (mask, ~mask[:, :4].T, torch.ones(4, 4, dtype=torch.bool), mask[:0]):
        if len(one) % 4 == 0:
            assert torch.equal(sparse.mask_of_bits(sparse.bits_of_mask(one)), one)


def test_what_has_no_bits_or_is_none_is_refused() -> None:
    mask = torch.ones(4, 8, dtype=torch.bool)
    for wrong in (mask.float(), mask[0], mask[:2], mask[:, :6]):
        with pytest.raises(InputError, match="bits are of a boolean mask"):
            sparse.bits_of_mask(wrong)
    for bits in (mask, torch.zeros(4, dtype=torch.int16), torch.zeros(1, 1, dtype=torch.int32)):
        with pytest.raises(InputError, match=r"a mask as bits is int16 \(R/4, C/4\), got"):
            sparse.mask_of_bits(bits)


def test_of_nothing_there_is_nothing() -> None:
    assert sparse.mask_24(torch.ones(0, 8)).shape == (0, 8)
    assert sparse.transposable_mask(torch.ones(0, 8)).shape == (0, 8)
    assert sparse.transposable_mask(torch.ones(8, 0)).shape == (8, 0)
