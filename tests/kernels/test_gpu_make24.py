"""Matrices made 2:4 in one pass on a GPU, beside the same in plain torch, bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from gpus import needs_a_gpu
from strategies import LAYOUTS, matrix
from torch.nn import functional

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.cusparselt_anew import times_packed
from blockshock.kernels.cusparselt_layout import dense_of, packed_as
from blockshock.kernels.make24 import ACTIVATIONS, Making, make24
from blockshock.machine import torch_internals
from blockshock.matrices.named_masks import best_tiles

pytestmark = [pytest.mark.gpu, needs_a_gpu]
DTYPES = (torch.bfloat16, torch.float16)
APPLIED = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "gelu": functional.gelu,
}
SIZES = ((64, 64), (128, 192), (1024, 512))


def _x(R: int, C: int, dtype: torch.dtype) -> torch.Tensor:
    """With zeros, equals and ties of sums among its numbers, all finite."""
    x_RC = torch.randn(R, C, generator=torch.Generator().manual_seed(R + C))
    x_RC[0], x_RC[1, :8] = 0, 1
    x_RC[8:16, :32] = torch.randint(-2, 3, (8, 32), generator=torch.Generator().manual_seed(0))
    return x_RC.to("cuda", dtype)


def _two_largest(keys_RC: torch.Tensor) -> torch.Tensor:
    groups = keys_RC.float().unflatten(1, (-1, 4))
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, kept, True).flatten(1)


def _words(mask_RC: torch.Tensor) -> torch.Tensor:
    tiles = mask_RC.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2).flatten(2).int()
    return (tiles << torch.arange(16, device=tiles.device, dtype=torch.int32)).sum(-1).to(torch.int16)


def _same(found: torch.Tensor | None, x_RC: torch.Tensor, mask_RC: torch.Tensor) -> bool:
    assert found is not None
    return torch.equal(found.view(torch.int16), packed_as(x_RC, mask_RC).view(torch.int16))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("choice", ["largest", "largest_size"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_choice_along_all(dtype: torch.dtype, choice: str, activation: str, first: bool) -> None:
    for R, C in SIZES:
        x_RC = _x(R, C, dtype)
        value = APPLIED[activation](x_RC)
        keys = value if first else x_RC
        keys = keys.abs() if choice == "largest_size" else keys
        rows, columns, tiles = (
            make24(x_RC, Making(along, choice, activation, first, exact=True)) for along in ("rows", "columns", "tiles")
        )
        both = best_tiles(keys.double() - keys.double().min())  # a sum of eight, whatever is added to each
        if activation == "gelu":  # whose last bit is the compiler's
            assert rows.rows is not None
            found, exact = dense_of(rows.rows, C), value.where(_two_largest(keys), 0)
            torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-3)
            continue
        assert rows.columns is None
        assert columns.rows is None
        assert _same(rows.rows, value, _two_largest(keys))
        assert _same(columns.columns, value.T, _two_largest(keys.T))
        assert _same(tiles.rows, value, both)
        assert _same(tiles.columns, value.T, both.T)
        assert tiles.mask is not None
        assert torch.equal(tiles.mask, _words(both))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_takes_the_mask_of_another_matrix(dtype: torch.dtype) -> None:
    x_RC, grad_RC = _x(128, 192, dtype), matrix(128, 192, dtype, 3, device="cuda")
    made = make24(x_RC, Making(exact=True))
    found = make24(grad_RC, Making(choice="given"), made.mask)
    both = best_tiles(x_RC.abs())
    assert _same(found.rows, grad_RC, both)
    assert _same(found.columns, grad_RC.T, both.T)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_goes_back_through_the_function(dtype: torch.dtype, activation: str) -> None:
    z_RC, grad_RC = _x(128, 192, dtype), matrix(128, 192, dtype, 3, device="cuda")
    made = make24(z_RC, Making(activation=activation, exact=True))
    found = make24(grad_RC, Making(choice="given", activation=activation), made.mask, z_RC=z_RC, with_sums=True)
    z64 = z_RC.double().requires_grad_()
    APPLIED[activation](z64).backward(grad_RC.double())
    assert z64.grad is not None
    both = best_tiles(z_RC.abs())
    for packed, mask, grad in ((found.rows, both, z64.grad), (found.columns, both.T, z64.grad.T)):
        if activation == "gelu":  # computed in float32
            assert packed is not None
            kept = dense_of(packed, mask.shape[1]).double()
            bound = 1e-6 + 0.6 * torch.finfo(dtype).eps * grad.abs()
            assert bool(((kept - grad.where(mask, 0)).abs() <= bound).all())
        else:
            assert _same(packed, grad.to(dtype), mask)
    assert found.columns is not None
    assert found.sums is not None
    torch.testing.assert_close(found.sums.sum(0), dense_of(found.columns, 128).float().sum(1), rtol=1e-5, atol=1e-4)
    with pytest.raises(InputError, match=r"z must be like x, \(128, 192\).*got \(64, 192\)"):
        make24(grad_RC, Making(choice="given"), made.mask, z_RC=z_RC[:64])


def _over_tokens(kept_RC: torch.Tensor) -> torch.Tensor:
    return _two_largest(kept_RC.T.abs())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu2"])
@pytest.mark.parametrize("choice", ["largest", "largest_size"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_first_thins_along_columns_what_stays(
    dtype: torch.dtype, choice: str, activation: str, first: bool
) -> None:
    for R, C in SIZES:
        x_RC = _x(R, C, dtype)
        value = APPLIED[activation](x_RC)
        keys = value if first else x_RC
        mask = _two_largest(keys.abs() if choice == "largest_size" else keys)
        kept = value.where(mask, 0)
        made = make24(x_RC, Making("rows_first", choice, activation, first), with_counts=True)
        assert _same(made.rows, value, mask)
        assert _same(made.columns, kept.T, _over_tokens(kept))
        assert made.mask is not None
        assert made.counts is not None
        assert torch.equal(made.mask, _words(mask))
        assert torch.equal(made.counts, (kept != 0).float().unflatten(0, (-1, 64)).sum(1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_rows_first_brings_columns_that_are_wanted_dense(dtype: torch.dtype, activation: str) -> None:
    z_RC, grad_RC = _x(128, 192, dtype), matrix(128, 192, dtype, 3, device="cuda")
    making = Making("rows_first", activation=activation)
    made, others = make24(z_RC, making), torch.randperm(192, device="cuda")[:50]
    back = making._replace(choice="given")
    found = make24(grad_RC, back, made.mask, z_RC=z_RC, with_sums=True, others=others)
    z64, mask = z_RC.double().requires_grad_(), _two_largest(z_RC.abs())
    value = APPLIED[activation](z64)
    value.backward(grad_RC.double())
    assert z64.grad is not None
    assert found.others is not None
    assert found.sums is not None
    grad, value = (one.detach().where(mask, 0)[:, others].T for one in (z64.grad, value))
    exact = torch.stack([grad, value])
    if activation == "gelu":  # computed in float32
        bound = 1e-6 + 0.6 * torch.finfo(dtype).eps * exact.abs()
        assert bool(((found.others.double() - exact).abs() <= bound).all())
    else:
        assert torch.equal(found.others, exact.to(dtype))
    rows = dense_of(found.rows, 192)  # type: ignore[arg-type]
    torch.testing.assert_close(found.sums.sum(0), rows.float().sum(0), rtol=1e-5, atol=1e-4)
    assert _same(found.columns, rows.T, _over_tokens(rows))
    without = make24(grad_RC, back, made.mask, z_RC=z_RC)
    assert all(map(torch.equal, (found.rows, found.columns), (without.rows, without.columns)))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_that_of_float64(dtype: torch.dtype) -> None:
    x_RC = torch.linspace(-12, 12, 64 * 1024, device="cuda").view(64, 1024).to(dtype)
    made = make24(x_RC, Making("rows", activation="gelu"))
    assert made.rows is not None
    exact = functional.gelu(x_RC.double()).where(_two_largest(x_RC.abs()), 0)
    bound = 0.51 * torch.finfo(dtype).eps * exact.abs() + 2e-7
    assert bool(((dense_of(made.rows, 1024).double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_in_float32_take_a_mask_that_is_as_good(dtype: torch.dtype) -> None:
    x_RC = matrix(1024, 1024, dtype, 5, device="cuda") * torch.logspace(-3, 3, 1024, device="cuda").to(dtype)
    made = make24(x_RC, Making())
    assert made.rows is not None
    sums = [
        kept.double().abs().unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).sum((1, 3))
        for kept in (dense_of(made.rows, 1024), x_RC.where(best_tiles(x_RC.abs()), 0))
    ]
    torch.testing.assert_close(*sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_thresholds(dtype: torch.dtype) -> None:
    w_RC = _x(128, 128, dtype)
    fours = w_RC.unflatten(1, (-1, 4))
    third = fours.abs().sort(dim=-1).values[..., 1:2]
    soft_RC = ((fours - fours.clamp(-third, third)).flatten(1).float() * 1.25).to(dtype)
    found = make24(w_RC, Making("rows", "soft"), scale=1.25)
    assert _same(found.rows, soft_RC, _two_largest(w_RC.abs()))


def _estimates(x_RC: torch.Tensor, along: str, draws: int) -> torch.Tensor:
    found = []
    for draw in range(draws):
        seed = torch.tensor([draw, 7], dtype=torch.int32, device="cuda")
        made = make24(x_RC, Making(along, "mvue"), seed=seed)
        packed, size = (made.rows, x_RC.shape[1]) if along == "rows" else (made.columns, len(x_RC))
        assert packed is not None
        found.append(dense_of(packed, size) if along == "rows" else dense_of(packed, size).T)
    return torch.stack(found).double()


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_estimate_is_unbiased_and_of_the_least_variance(dtype: torch.dtype, along: str) -> None:
    """Of 1000 draws; the squared distance is (S/2)·S − Σx² of a group without a dominant number, by the formula."""
    x_RC = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    x_RC[0, :4] = torch.tensor([0.0, 3, 0, 0], device="cuda")
    x_RC[1:5] = torch.tensor([1.0, 1, 1, 8], device="cuda").repeat(32)
    estimates = _estimates(x_RC, along, 1000)
    sizes = (x_RC if along == "rows" else x_RC.T).double().abs().unflatten(1, (-1, 4))
    largest, total = sizes.amax(-1), sizes.sum(-1)
    rest = total - largest
    kept = torch.where(largest > rest, rest.square() + largest.square(), total.square() / 2)
    least = (kept.sum() - sizes.square().sum()).item()
    spread = (estimates - x_RC.double()).square().sum() / 1000
    assert spread.item() == pytest.approx(least, rel=0.03)
    assert (estimates.mean(0) - x_RC.double()).norm() <= 1.5 * math.sqrt(least / 1000)


def test_seeds_make_bits_and_a_graph_draws_anew() -> None:
    x_RC, seed = _x(64, 64, torch.bfloat16), torch.tensor([1, 2], dtype=torch.int32, device="cuda")
    making = Making("rows", "mvue")
    one, again = (make24(x_RC, making, seed=seed).rows for _ in range(2))
    assert one is not None
    assert again is not None
    assert torch.equal(one, again)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = make24(x_RC, making, seed=seed).rows
    assert captured is not None
    graph.replay()
    assert torch.equal(captured, one)
    seed.add_(5)
    graph.replay()
    assert not torch.equal(captured, one)


def test_nothing_that_is_not_finite_is_lost() -> None:
    x_RC = _x(64, 64, torch.bfloat16)
    x_RC[0, 0], x_RC[4, 4], x_RC[8, 8] = math.nan, math.inf, -math.inf
    seed = torch.tensor([1, 2], dtype=torch.int32, device="cuda")
    along = (Making(), Making("rows"), Making("columns"), Making("rows_first"))
    for making in (*along, Making("rows", "mvue"), Making("rows", "soft")):
        made = make24(x_RC, making, seed=seed)
        packed = made.rows if made.rows is not None else made.columns
        assert packed is not None
        found = dense_of(packed, 64)
        found = found if made.rows is not None else found.T
        for at in (0, 4, 8):
            assert not torch.isfinite(found[at, at - at % 4 : at + 4]).all(), making


@pytest.mark.parametrize("layout", LAYOUTS)
def test_x_may_lie_in_any_way(layout: str) -> None:
    x_RC = matrix(64, 128, torch.bfloat16, 2, layout, "cuda")
    found, wanted = make24(x_RC, Making()), make24(x_RC.contiguous().clone(), Making())
    assert all(torch.equal(one, other) for one, other in zip(found[:3], wanted[:3], strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cusparselt_multiplies_what_was_made(dtype: torch.dtype) -> None:
    x_RC, w_CN = matrix(256, 512, dtype, 0, device="cuda"), matrix(512, 64, dtype, 1, device="cuda")
    made, both = make24(x_RC, Making(exact=True)), best_tiles(x_RC.abs())
    assert made.rows is not None
    assert made.columns is not None
    kept_RC = x_RC.where(both, 0).double()
    for found, exact in (
        (times_packed(made.rows, 256, w_CN, "rows", "matmul"), kept_RC @ w_CN.double()),
        (
            times_packed(made.columns, 512, x_RC[:, :64].contiguous(), "columns", "matmul"),
            kept_RC.T @ x_RC[:, :64].double(),
        ),
    ):
        torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)


def test_the_library_compresses_to_the_same() -> None:
    x_RC = torch.rand(256, 512, device="cuda").half() + 0.5
    made = make24(x_RC, Making("rows"))
    assert made.rows is not None
    assert torch.equal(made.rows, torch_internals.compress(x_RC.where(_two_largest(x_RC), 0)))


def test_what_cannot_be_made_is_refused_in_words() -> None:
    x_RC = _x(64, 64, torch.bfloat16)
    with pytest.raises(KernelUnavailable, match="choose from rows, columns, tiles, rows_first"):
        make24(x_RC, Making("diagonals"))
    with pytest.raises(KernelUnavailable, match="'mvue' is not one along tiles"):
        make24(x_RC, Making("tiles", "mvue"))
    with pytest.raises(KernelUnavailable, match="for CUDA GPUs, x is on cpu"):
        make24(x_RC.cpu(), Making())
    with pytest.raises(InputError, match="multiples of 64"):
        make24(x_RC[:32], Making())
    with pytest.raises(KernelUnavailable, match="of rows_first, not along tiles"):
        make24(x_RC, Making(), with_counts=True)
    with pytest.raises(InputError, match="give z too"):
        make24(x_RC, Making("rows_first"), others=torch.arange(3, device="cuda"))
