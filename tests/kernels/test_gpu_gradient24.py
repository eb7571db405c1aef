"""Gradients that come back dense through what was made 2:4 on a GPU, in one pass: beside autograd's, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gpus import needs_a_gpu
from strategies import matrix
from torch.nn import functional

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.gradient24 import gradient24_
from blockshock.kernels.make24 import ACTIVATIONS, Making, make24
from blockshock.training.sparse import bits_of_mask, mask_24

pytestmark = [pytest.mark.gpu, needs_a_gpu]
APPLIED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "gelu": functional.gelu,
}
both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def _z(R: int, C: int, dtype: torch.dtype) -> torch.Tensor:
    z_RC = torch.randn(R, C, generator=torch.Generator().manual_seed(R + C)).to("cuda", dtype)
    z_RC[0] = 0
    return z_RC


def _by_autograd(
    grad_RC: torch.Tensor, z_RC: torch.Tensor, kept_RC: torch.Tensor, making: Making, straight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of z, and a, in float64."""
    z64, function = z_RC.double().requires_grad_(), APPLIED[making.activation]

    def thin(values_RC: torch.Tensor) -> torch.Tensor:
        thinned = values_RC.where(kept_RC, 0)
        return values_RC + (thinned - values_RC).detach() if straight else thinned

    (thin(function(z64)) if making.first else function(thin(z64))).backward(grad_RC.double())
    assert z64.grad is not None
    return z64.grad, function(z64.detach()).where(kept_RC, 0)


def _same(found: torch.Tensor, exact: torch.Tensor, activation: str) -> bool:
    if activation != "gelu":
        return torch.equal(found, exact.to(found.dtype))
    bound = 1e-6 + 0.6 * torch.finfo(found.dtype).eps * exact.abs()  # computed in float32
    return bool(((found.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@both_dtypes
def test_a_gradient_is_autograds(dtype: torch.dtype, activation: str, first: bool, straight: bool) -> None:
    for R, C in ((64, 64), (128, 192), (1024, 512)):
        z_RC, given_RC = _z(R, C, dtype), matrix(R, C, dtype, 3, device="cuda")
        kept_RC, others = mask_24(z_RC), torch.randperm(C, device="cuda")[: C // 3]
        making, mask = Making(activation=activation, first=first), bits_of_mask(kept_RC)
        exact, a_RC = _by_autograd(given_RC, z_RC, kept_RC, making, straight)
        grad_RC = given_RC.clone()
        beside = gradient24_(grad_RC, z_RC, mask, making, straight, with_sums=True, others=others)
        assert _same(grad_RC, exact, activation)
        assert beside.sums is not None
        assert beside.others is not None
        assert _same(beside.others, a_RC[:, others].T, activation)
        torch.testing.assert_close(beside.sums.sum(0), grad_RC.float().sum(0), rtol=1e-5, atol=1e-3)


@both_dtypes
def test_what_is_asked_for_beside_a_gradient_does_not_change_it(dtype: torch.dtype) -> None:
    z_RC, given_RC = _z(128, 192, dtype), matrix(128, 192, dtype, 3, device="cuda")
    mask, others, found = bits_of_mask(mask_24(z_RC)), torch.tensor([70, 3], device="cuda"), []
    for with_sums, wanted in ((False, None), (True, None), (False, others), (True, others)):
        grad_RC = given_RC.clone()
        beside = gradient24_(grad_RC, z_RC, mask, Making(activation="relu2"), False, with_sums, wanted)
        assert [one is not None for one in beside] == [with_sums, wanted is not None]
        found.append(grad_RC)
    assert all(torch.equal(one, found[0]) for one in found[1:])


@both_dtypes
def test_what_is_kept_of_a_gradient_is_what_is_packed_of_it(dtype: torch.dtype) -> None:
    z_RC, grad_RC = _z(128, 192, dtype), torch.randn(128, 192, device="cuda").to(dtype)
    for activation in ("relu", "relu2"):
        making = Making(activation=activation)
        mask = make24(z_RC, making).mask
        assert mask is not None
        packed = make24(grad_RC, making._replace(choice="given"), mask, z_RC=z_RC)
        dense_RC = grad_RC.clone()
        gradient24_(dense_RC, z_RC, mask, making)
        again = make24(dense_RC, Making(choice="given"), mask)
        for one, other in ((packed.rows, again.rows), (packed.columns, again.columns)):
            assert one is not None
            assert other is not None
            assert torch.equal(one.view(torch.int16), other.view(torch.int16))


def test_what_is_not_finite_stays_where_it_is_kept_and_is_gone_where_it_is_dropped() -> None:
    z_RC, kept_RC = _z(64, 64, torch.bfloat16), (torch.arange(64, device="cuda") % 4 < 2).expand(64, 64)
    grad_RC = torch.full_like(z_RC, math.nan)
    gradient24_(grad_RC, z_RC, bits_of_mask(kept_RC), Making(activation="gelu"))
    assert grad_RC[kept_RC].isnan().all()
    assert not grad_RC[~kept_RC].any()


def test_what_it_cannot_take_is_refused_in_words() -> None:
    z_RC = _z(64, 128, torch.bfloat16)
    grad_RC, mask = torch.ones_like(z_RC), bits_of_mask(mask_24(z_RC))
    with pytest.raises(InputError, match=r"the gradient must be like z, \(64, 128\).*got \(64, 64\)"):
        gradient24_(grad_RC[:, :64], z_RC, mask, Making())
    with pytest.raises(InputError, match="must lie densely"):
        gradient24_(torch.ones(128, 64, device="cuda", dtype=z_RC.dtype).T, z_RC, mask, Making())
    with pytest.raises(InputError, match=r"int16 \(16, 32\) on cuda.*, got torch.bool \(64, 128\)"):
        gradient24_(grad_RC, z_RC, mask_24(z_RC), Making())
    with pytest.raises(KernelUnavailable, match="choose from none, relu"):
        gradient24_(grad_RC, z_RC, mask, Making(activation="tanh"))
    with pytest.raises(KernelUnavailable, match="for CUDA GPUs, x is on cpu"):
        gradient24_(grad_RC.cpu(), z_RC.cpu(), mask.cpu(), Making())
