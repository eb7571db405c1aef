"""S-STE's threshold and scale, and masked decay, beside their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from strategies import equal

from blockshock import sparse
from blockshock.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def soft(group: list[float]) -> list[float]:
    """By the definition: t is the second smallest size."""
    t = sorted(map(abs, group))[1]
    return [(w > 0) * max(w - t, 0.0) + (w < 0) * min(w + t, 0.0) for w in group]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, -1])
def test_the_threshold_is_the_second_smallest(dtype: torch.dtype, dim: int) -> None:
    w = torch.randn(16, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    w[0], w[1, :8] = 0.0, torch.tensor([2, -2, 2, 1, -3, 3, 3, 3])
    found = sparse.soft_threshold_24(w, dim)
    groups = w.double().movedim(dim, -1).reshape(-1, 4).tolist()
    wanted = torch.tensor([soft(group) for group in groups], dtype=torch.float64)
    shaped = wanted.view(w.movedim(dim, -1).shape).movedim(-1, dim)
    assert equal(found, shaped.to(dtype)), "once rounded, and no zero with a sign"
    assert (found.movedim(dim, -1).reshape(-1, 4) != 0).sum(1).le(2).all()


def test_its_gradient_is_that_of_finite_differences() -> None:
    w = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(sparse.soft_threshold_24, (w,))
    assert torch.autograd.gradcheck(lambda w: sparse.soft_threshold_24(w, 0), (w.detach().T.requires_grad_(),))


def test_a_nan_is_seen_in_its_group_alone() -> None:
    found = sparse.soft_threshold_24(torch.tensor([float("nan"), 1, 2, 3, 1, 2, 3, 4]))
    assert found[:4].isnan().all()
    assert found[4:].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_makes_it_nearest(dtype: torch.dtype) -> None:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    dense, kept = w.double().flatten(), sparse.soft_threshold_24(w).double().flatten()
    wanted = torch.linalg.lstsq(kept[:, None], dense[:, None]).solution.item()
    found = sparse.fixed_scale(w)
    assert float(found) == pytest.approx(wanted, rel=1e-12)
    assert (found * w).dtype == dtype
    assert found.dtype == torch.float64


def test_of_gaussians_the_scale_and_what_is_lost_are_those_of_the_paper() -> None:
    w = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3), requires_grad=True)
    scale = sparse.fixed_scale(w)
    assert float(scale) == pytest.approx(1.482, abs=0.005)
    lost = (scale * sparse.soft_threshold_24(w) - w).square().sum() / w.square().sum()
    assert float(lost.detach()) == pytest.approx(0.258, abs=0.003)
    assert not scale.requires_grad


@pytest.mark.parametrize("w", [torch.zeros(4, 4), torch.ones(4, 4), torch.tensor([[1.0, float("nan"), 2, 3]])])
def test_there_is_no_scale_of_nothing(w: torch.Tensor) -> None:
    with pytest.raises(InputError, match="there is no scale for w"):
        sparse.fixed_scale(w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_dropped_decays(dtype: torch.dtype) -> None:
    stream = torch.Generator().manual_seed(4)
    grad, w = (torch.randn(8, 12, generator=stream).to(dtype) for _ in range(2))
    mask = sparse.mask_24(w)
    before, wanted = grad.clone(), grad.double() + 0.25 * ~mask * w.double()
    by_bits = sparse.masked_decay_(grad.clone(), w, sparse.bits_of_mask(mask), 0.25)
    assert sparse.masked_decay_(grad, w, mask, 0.25) is grad
    assert equal(by_bits, grad)
    assert equal(grad[mask], before[mask])
    torch.testing.assert_close(grad.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert equal(sparse.masked_decay_(before.clone(), w, mask, 0), before)
    kept = torch.full_like(w, float("nan")).masked_fill(~mask, 0)
    zeros = torch.zeros_like(before).copysign(before)
    assert equal(sparse.masked_decay_(zeros.clone(), kept, mask, 0.25)[mask], zeros[mask]), "what is kept stays"


def test_decay_is_added_in_place_whatever_the_layout_and_the_dtype_of_w() -> None:
    w = torch.randn(8, 4, dtype=torch.bfloat16, requires_grad=True)
    whole = torch.zeros(8, 8)
    sparse.masked_decay_(whole.T[::2].T, w, torch.zeros(8, 4, dtype=torch.bool), 1.0)
    assert torch.equal(whole[:, ::2], w.float())
    assert not whole[:, 1::2].any()


def test_decay_of_what_does_not_fit_is_refused() -> None:
    grad, mask = torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)
    for args, says in [
        (
            (grad, grad, mask.float(), 0.1),
            "a mask is boolean, of what is kept, or its bits as int16; got torch.float32",
        ),
        ((grad, grad.int(), mask, 0.1), "floating-point dtype, got torch.float32 and torch.int32"),
        ((grad, grad[:2], mask, 0.1), r"one shape, .*, got \(4, 4\), \(2, 4\), \(4, 4\)"),
        ((grad, grad.to("meta"), mask, 0.1), "one device, got cpu, meta, cpu"),
        ((grad, grad, mask.short(), 0.1), r"its bits \(R/4, C/4\) of \(R, C\), got \(4, 4\), \(4, 4\), \(4, 4\)"),
        ((grad[0], grad[0], mask.short()[0, :1], 0.1), r"got \(4,\), \(4,\), \(1,\)"),
        ((grad, grad, mask, -0.1), "decay must lie in 0"),
        ((grad, grad, mask, float("nan")), "decay must lie in 0"),
    ]:
        with pytest.raises(InputError, match=says):
            sparse.masked_decay_(*args)
    assert not grad.any()
