"""2:4 matrices that torch's functions multiply by, beside float64 products of what they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockshock.sparse import Sparse24, mask_24, mvue_24, transposable_mask
from fake_cusparselt import fake_cusparselt
from strategies import LAYOUTS, mask_rows, matrix
from torch.nn import functional as F

from blockshock.errors import InputError, KernelUnavailable, MaskError
from blockshock.kernels import E5m2, format_of

__all__ = ["fake_cusparselt"]
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BYTES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
KERNELS = ("reference", "cusparselt:search=no")
N, K, B = 32, 48, 5


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found: torch.Tensor, exact: torch.Tensor, roundings: int = 1) -> None:
    assert (found.double() - exact).norm() <= 2 * roundings * torch.finfo(found.dtype).eps * exact.norm()


def represented(w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (E5m2() if dtype == torch.float8_e5m2 else format_of(dtype)).represented(w)


@pytest.mark.parametrize("source", PLAIN)
@pytest.mark.parametrize("dtype", PLAIN)
def test_all_products_are_those_of_what_is_kept(source: torch.dtype, dtype: torch.dtype) -> None:
    """Of numbers in any dtype, chosen in that one, held in any other."""
    x_NK, a_BK, b_BN = randn(N, K, dtype=source), randn(B, K, dtype=dtype, seed=1), randn(B, N, dtype=dtype, seed=2)
    A = Sparse24(x_NK, dtype=dtype, both_ways=True)
    kept = x_NK.where(mask_24(x_NK), 0).to(dtype).double()
    assert (A.shape, A.t().shape, A.dtype) == ((N, K), (K, N), dtype)
    added = randn(N, dtype=dtype, seed=3)
    exact_BN, exact_BK = a_BK.double() @ kept.T, b_BN.double() @ kept
    for found in (
        F.linear(a_BK, A),
        torch.mm(a_BK, A.t()),
        a_BK @ A.t(),
        torch.matmul(a_BK, torch.t(A)),
        a_BK.mm(A.t()),
    ):
        close(found, exact_BN)
    for found in (torch.mm(A, a_BK.T), A @ a_BK.T, torch.matmul(A.detach(), a_BK.T)):
        close(found, exact_BN.T)
    for found in (b_BN @ A, torch.mm(A.t(), b_BN.T).T, F.linear(b_BN, A.t()), F.linear(A.t(), b_BN).T):
        close(found, exact_BK)
    close(F.linear(a_BK, A, added), exact_BN + added.double(), 2)
    close(torch.addmm(added, a_BK, A.t()), exact_BN + added.double(), 2)
    close(torch.addmm(added[:, None], A, a_BK.T, beta=2, alpha=0.5), (exact_BN / 2 + 2 * added.double()).T, 3)
    close(added.addmm(a_BK, A.t()), exact_BN + added.double(), 2)
    close(F.linear(a_BK.expand(2, 3, B, K), A)[1, 2], exact_BN)
    assert F.linear(a_BK[0], A).shape == (N,)
    assert F.linear(a_BK[:0], A).shape == (0, N)


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_multiplies_the_same(kernel: str, fake_cusparselt: Any) -> None:
    x_NK, mask = randn(N, K, dtype=torch.bfloat16), torch.tensor([[True, True, False, False]]).repeat(N, K // 4)
    a_BK, b_BN = randn(B, K, dtype=torch.bfloat16, seed=1), randn(B, N, dtype=torch.bfloat16, seed=2)
    A = Sparse24(x_NK, mask, both_ways=True, kernel=kernel)
    kept = x_NK.where(mask, 0).double()
    close(F.linear(a_BK, A), a_BK.double() @ kept.T)
    close(b_BN @ A, b_BN.double() @ kept)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("both_ways", [False, True])
def test_what_is_kept_stays_as_it_is(kernel: str, both_ways: bool, fake_cusparselt: Any) -> None:
    """Zeros too, which libraries take for dropped; and what is dropped is never seen."""
    x_NK = torch.zeros(16, 16, dtype=torch.bfloat16)
    x_NK[0], x_NK[1] = 1.0, float("nan")
    x_NK[2, :4] = torch.tensor([-0.0, 5, 0, float("inf")])
    mask = torch.tensor([[False, True, True, False]]).repeat(16, 4)
    A = Sparse24(x_NK, mask, both_ways=both_ways, kernel=kernel)
    found = F.linear(torch.eye(16, dtype=torch.bfloat16), A).T
    assert torch.equal(found[0], mask[0].bfloat16())
    assert found[1].isnan().any()
    assert found[2].tolist() == [0, 5, *[0] * 14]
    assert not found[3:].any()


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("source", PLAIN)
@pytest.mark.parametrize("given", [False, True])
def test_in_eight_bits_products_are_those_of_what_is_stored(
    dtype: torch.dtype, source: torch.dtype, given: bool
) -> None:
    x_NK, mask = randn(N, K, dtype=source), mask_rows(N, K, 7)
    x_NK *= torch.logspace(-2, 2, N)[:, None].to(source)
    A = Sparse24(x_NK, mask if given else None, dtype=dtype)
    kept = x_NK.where(mask if given else mask_24(x_NK), 0).to(torch.promote_types(torch.float16, source))
    a_BK = randn(B, K, dtype=torch.float32 if source == torch.float64 else source, seed=1)
    exact_BN = represented(a_BK, dtype) @ represented(kept.float(), dtype).T
    close(F.linear(a_BK, A), exact_BN)
    close(A @ a_BK.T, exact_BN.T)
    assert F.linear(a_BK, A).dtype == a_BK.dtype


def test_e5m2_stores_the_nearest_number_that_it_has() -> None:
    numbers = torch.arange(124, dtype=torch.uint8).view(torch.float8_e5m2).double()
    between = (numbers[1:] + numbers[:-1]) / 2
    for row in (numbers, between, between * 1.001, between * 0.999):
        scaled = torch.cat([row, torch.tensor([57344.0], dtype=torch.float64)]).float()[None]
        q, scale = E5m2().quantise(scaled)
        distance = (q.double() * scale.double() - scaled.double()).abs()
        assert torch.equal(distance[0], (numbers[None] - scaled.double().T).abs().amin(1))
        assert torch.equal(E5m2().represented(scaled), q.double() * scale.double())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_by_mvue_it_holds_what_is_drawn(exact: bool, dtype: torch.dtype) -> None:
    x_NK, stream = randn(N, K), torch.Generator().manual_seed(3)
    x_NK[0], x_NK[1, 1:] = 0.0, 0.0  # fewer than two of four to keep
    A = Sparse24.by_mvue(x_NK, stream, exact, dtype=dtype)
    drawn = mvue_24(x_NK, 1, stream.manual_seed(3), exact)
    a_BK = randn(B, K, dtype=torch.bfloat16, seed=1)
    if dtype == torch.bfloat16:
        close(F.linear(a_BK, A), a_BK.double() @ drawn.bfloat16().double().T)
    else:
        close(F.linear(a_BK, A), represented(a_BK, dtype) @ represented(drawn, dtype).T)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_of_finite_differences(turned: bool) -> None:
    w_NK = randn(8, 12, dtype=torch.float64)
    A = Sparse24(w_NK, transposable_mask(w_NK), both_ways=True)
    A = A.t() if turned else A
    x_BC, bias = randn(3, A.shape[1], dtype=torch.float64, seed=1), randn(A.shape[0], dtype=torch.float64, seed=2)
    x_BC.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, bias: F.linear(x, A, bias), (x_BC, bias))
    assert torch.autograd.gradcheck(lambda x, bias: torch.addmm(bias[:, None], A, x.t(), alpha=3.0), (x_BC, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sides_may_lie_as_they_will(layout: str, fake_cusparselt: Any) -> None:
    x_NK, a_BK = matrix(N, K, torch.bfloat16, 0, layout), matrix(B, K, torch.bfloat16, 1, layout)
    b_BN = matrix(B, N, torch.bfloat16, 2, layout)
    for kernel in KERNELS:
        A, same = (Sparse24(x, both_ways=True, kernel=kernel) for x in (x_NK, x_NK.contiguous().clone()))
        assert torch.equal(F.linear(a_BK, A), F.linear(a_BK.contiguous().clone(), same))
        assert torch.equal(b_BN @ A, b_BN.contiguous().clone() @ same)


def test_at_beta_zero_what_is_added_is_ignored_as_torch_ignores_it() -> None:
    w_NK, x_BK = randn(N, K), randn(B, K)
    added = torch.tensor([torch.nan, torch.inf]).repeat(N // 2).requires_grad_()
    A, dense_KN = Sparse24(w_NK), w_NK.where(mask_24(w_NK), 0).T
    for beta in (0, 0.0):
        found, right = (torch.addmm(added, x_BK, other, beta=beta, alpha=2) for other in (A.t(), dense_KN))
        torch.testing.assert_close(found, right)
        assert not torch.autograd.grad(found.sum(), added)[0].any()
    assert torch.addmm(added, x_BK, A.t(), beta=1).isnan().any()
    with pytest.raises(RuntimeError, match="must match"):
        torch.addmm(added[1:], x_BK, A.t(), beta=0)


@pytest.mark.parametrize("dtype", BYTES)
def test_eight_bits_go_along_n_by_what_the_error_says(dtype: torch.dtype) -> None:
    w_NK, b_BN = randn(N, K), randn(B, N, seed=1)
    mask = transposable_mask(w_NK)
    with pytest.raises(InputError, match=r"made of the transposed matrix .* if its mask is transposable"):
        b_BN @ Sparse24(w_NK, mask, dtype=dtype)
    kept_KN = represented(w_NK.T.where(mask.T, 0), dtype)
    close(F.linear(b_BN, Sparse24(w_NK.T, mask.T, dtype=dtype)), represented(b_BN, dtype) @ kept_KN.T)


def test_what_has_no_product_is_refused() -> None:
    x_NK, A = randn(N, K), Sparse24(randn(N, K))
    good, in_bytes = torch.ones(B, K), Sparse24(x_NK, dtype=torch.int8)
    trained = torch.ones(B, K, requires_grad=True)
    for refused, error, says in [
        (lambda: Sparse24(x_NK[0]), InputError, r"made of a matrix \(N, K\), got \(48,\)"),
        (lambda: Sparse24.by_mvue(x_NK[0]), InputError, r"made of a matrix \(N, K\), got \(48,\)"),
        (lambda: Sparse24(x_NK[:, :6]), InputError, "must be a multiple of 4"),
        (lambda: Sparse24(x_NK, dtype=torch.int32), InputError, "is held in torch.float16, .*; got torch.int32"),
        (lambda: Sparse24(x_NK, x_NK > 0), MaskError, "not 2:4: row 0"),
        (lambda: Sparse24(x_NK, mask_24(x_NK)[:4]), MaskError, r"must be that of \(32, 48\) on cpu, got \(4, 48\)"),
        (lambda: Sparse24(x_NK, mask_24(x_NK).float()), MaskError, "a mask is a boolean"),
        (
            lambda: Sparse24(x_NK, dtype=torch.int8, both_ways=True),
            InputError,
            "not for torch.int8: eight bits",
        ),
        (
            lambda: good[:, :N] @ in_bytes,
            InputError,
            "is along N: eight bits go one way",
        ),
        (lambda: F.linear(trained, in_bytes).sum().backward(), InputError, "go one way, without gradients"),
        (lambda: Sparse24(x_NK, dtype=torch.int8, kernel="streamed"), KernelUnavailable, "needs a cuda device"),
        (lambda: Sparse24(x_NK, kernel="streamed"), KernelUnavailable, "needs a cuda device"),
        (lambda: Sparse24(x_NK, dtype=torch.int8, kernel="gathered"), InputError, "gathered does not multiply int8"),
        (lambda: Sparse24(x_NK, dtype=torch.float8_e5m2, kernel="dense"), InputError, "by kernel reference alone"),
        (lambda: Sparse24(x_NK / 0, dtype=torch.int8), InputError, "of W goes up to inf"),
        (lambda: Sparse24(x_NK, kernel="auto"), InputError, "kernel auto packs nothing itself"),
        (lambda: A @ A.t(), InputError, r"is multiplied by a dense matrix, got Sparse24\(\(48, 32\)"),
        (lambda: A @ good[0], InputError, "is multiplied by a dense matrix"),
        (lambda: good @ A, InputError, r"\(5, 48\) and Sparse24\(\(32, 48\), .*: 32 features are taken"),
        (lambda: torch.ones(B, N) @ A, InputError, "along N: make it with both_ways=True"),
        (lambda: F.linear(trained, A).sum().backward(), InputError, "or gradient, is along N: make it with both_ways"),
        (lambda: F.linear(good.bfloat16(), A), InputError, "is not multiplied by torch.bfloat16: cast that first"),
        (
            lambda: F.linear(good.double(), Sparse24(x_NK, dtype=torch.int8)),
            InputError,
            "not multiplied by torch.float64",
        ),
        (lambda: F.linear(good.to("meta"), A), InputError, "on the same device, got meta"),
        (lambda: torch.relu(A), InputError, "has mm, matmul, addmm, linear, t and detach, not relu"),
    ]:
        with pytest.raises(error, match=says):
            refused()
