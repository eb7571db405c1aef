"""On a GPU, what one launch stores in eight bits, and how it scales sums, beside plain torch: rows of every kind."""

from __future__ import annotations

import pytest
import torch
from gpus import format_of_this_gpu, needs_a_gpu
from strategies import LAYOUTS, matrix

from blockshock.kernels.formats import Order, base, one_pass

pytestmark = [pytest.mark.gpu, needs_a_gpu]
FORMATS = ("int8", "fp8")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FEW = ((1, 8), (3, 256), (31, 384), (500, 768), (16, 8192), (5, 20_000))
"""Rows and features, of which a row has up to as many threads as a block can."""
MANY = ((9001, 128), (8195, 256), (9001, 1024), (8200, 776), (4099, 1032), (2053, 4096), (1025, 8192), (513, 16_384))
"""Of which it has as few as do; of one warp a row, the last block is not full."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_in_one_launch_the_same_is_stored(name: str, dtype: torch.dtype, layout: str) -> None:
    format = format_of_this_gpu(name)
    for rows, features in ((1, 64), (7, 260), (33, 4096), (5, 63), (8195, 132)):
        x_BK = matrix(rows, features, dtype, rows, layout, "cuda")
        numbers, scale_B1 = format.quantise(x_BK)
        wanted, wanted_B1 = base._quantised(x_BK, format.largest, format.stored)
        assert torch.equal(scale_B1, wanted_B1)
        assert torch.equal(numbers.view(torch.uint8), wanted.contiguous().view(torch.uint8))
    assert one_pass.quantises(torch.ones(4, 64, dtype=dtype, device="cuda"), format.stored)
    assert not one_pass.quantises(torch.ones(4, 66, dtype=dtype, device="cuda"), format.stored)
    assert not one_pass.quantises(torch.ones(1, 1 << 20, dtype=dtype, device="cuda"), format.stored), (
        "a matrix in a row"
    )


def _stored_alike(name: str, x_RK: torch.Tensor, order: Order) -> bool:
    """Whether one launch stores the bits that plain torch does, in an order, and finds its scales."""
    format = format_of_this_gpu(name)
    assert one_pass.quantises(x_RK, format.stored)
    found, found_R1 = format.quantise_in(x_RK, order)
    wanted, wanted_R1 = base._quantised(x_RK, format.largest, format.stored)
    here, there = (_rows_of(numbers.view(torch.uint8), order) for numbers in (found, order.of(wanted)))
    return torch.equal(found_R1, wanted_R1) and torch.equal(here[: len(x_RK)], there[: len(x_RK)])


def _rows_of(numbers: torch.Tensor, order: Order) -> torch.Tensor:
    """Which of tiles are filled up with anything."""
    return numbers.permute(0, 2, 1, 3).flatten(0, 1) if order is Order.TILES else numbers


def _with_zeros(R: int, K: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Tokens as after relu, zeros of both signs among them."""
    x_RK = torch.randn(R, K, generator=torch.Generator().manual_seed(R)) * torch.logspace(-2, 2, R)[:, None]
    x_RK = x_RK.to("cuda", dtype)
    return x_RK.where(x_RK > 0, x_RK * 0)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("rows", "features"), [*FEW, *MANY])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("name", FORMATS)
def test_rows_short_and_long_few_and_many_are_stored_alike(
    name: str, order: Order, rows: int, features: int, strided: bool
) -> None:
    x_RK = _with_zeros(rows, features + 12 * strided)[:, :features]
    assert _stored_alike(name, x_RK, order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_may_have_any_number_of_threads(
    name: str, order: Order, threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that they keep, and of rows that they read twice."""
    monkeypatch.setattr(one_pass, "_row_threads", lambda R, K: threads)
    for rows, features in ((1001, 256), (31, 1032), (5, 33000)):
        assert _stored_alike(name, _with_zeros(rows, features, dtype), order)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_in_the_middle_of_two_are_stored_alike_in_rows_of_any_size(name: str) -> None:
    """The least error of a quotient shows there."""
    x_RK = _in_the_middle(name).to("cuda")
    assert all(_stored_alike(name, x_RK, order) for order in Order)


def _in_the_middle(name: str) -> torch.Tensor:
    """Rows of the numbers of a format and of what lies between them, times what float32 can hold."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn) if name == "fp8" else torch.arange(128)
    row_K = torch.zeros(256)
    row_K[: len(numbers)] = numbers.float()
    row_K[len(numbers) : 2 * len(numbers) - 1] = (numbers.float()[1:] + numbers.float()[:-1]) / 2
    size_R = torch.linspace(-118, 110, 4000).exp2() * torch.rand(4000, generator=torch.Generator().manual_seed(1))
    return row_K * size_R[:, None]


def test_rows_that_are_zero_tiny_or_not_finite_are_stored_alike_in_one_launch() -> None:
    x_BK = matrix(6, 128, torch.float32, 3, device="cuda")
    x_BK[0], x_BK[1] = 0, x_BK[1] * 1e-40
    x_BK[2, 5], x_BK[3, 6], x_BK[4] = float("inf"), float("nan"), x_BK[4, 0]
    for name in FORMATS:
        format = format_of_this_gpu(name)
        found, wanted = format.quantise(x_BK), base._quantised(x_BK, format.largest, format.stored)
        assert torch.equal(found.scale.nan_to_num(nan=-1), wanted[1].nan_to_num(nan=-1))
        for row in (0, 1, 4, 5):
            assert torch.equal(found.numbers[row].view(torch.uint8), wanted[0][row].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sums", [torch.int32, torch.float32, torch.bfloat16])
def test_in_one_launch_sums_are_scaled(sums: torch.dtype, dtype: torch.dtype) -> None:
    format = format_of_this_gpu("int8")
    wide_BN = (torch.randn(33, 300, device="cuda") * 1000).to(sums)
    scale_B1, scale_N = torch.rand(33, 1, device="cuda") / 1000, torch.rand(256, device="cuda")
    for given in (wide_BN[:, :256], wide_BN[:, :256].contiguous(), wide_BN[:9, 1:257]):
        for channels in (None, scale_N):
            for bias in (None, torch.randn(256, device="cuda").to(dtype)):
                few_B1 = scale_B1[: len(given)]
                found = format.descale(given, few_B1, channels, bias, dtype)
                wanted = base.descaled(given, few_B1, channels, bias, dtype)
                torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert one_pass.scales(wide_BN[:, :256], scale_N, None, dtype)
    assert not one_pass.scales(wide_BN[:, 1:257], scale_N, None, dtype), "four numbers of it do not lie together"


@pytest.mark.parametrize(
    ("B", "N"), [(1, 4), (3, 256), (33, 384), (4099, 256), (1367, 768), (1027, 1024), (2051, 1028), (300, 4100)]
)
def test_rows_short_and_long_of_sums_are_scaled(B: int, N: int) -> None:
    sums_BN = torch.randint(-(1 << 20), 1 << 20, (B, N + 12), device="cuda", dtype=torch.int32)[:, :N]
    scale_B1, scale_N = torch.rand(B, 1, device="cuda") / 1000, torch.rand(N, device="cuda")
    bias = torch.randn(N, device="cuda").bfloat16()
    assert one_pass.scales(sums_BN, scale_N, bias, torch.bfloat16)
    found = one_pass.descaled(sums_BN, scale_B1, scale_N, bias, torch.bfloat16)
    wanted = base.descaled(sums_BN, scale_B1, scale_N, bias, torch.bfloat16)
    torch.testing.assert_close(found, wanted, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-6)
