"""Backward passes of the products: grad_X, in named stages like the forward pass.

grad_y is made contiguous first: a loss such as ``y.sum()`` hands over an expanded tensor of stride zero, which sparse
kernels read as if it were dense memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from blockshock.kernels import Packed
from blockshock.stages import copied, stage


def linear(x_BK: torch.Tensor, w_NK: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ + bias for a dense W, differentiable in x. Stages ``matmul``, and ``grad_x`` in backward."""
    if torch.is_grad_enabled() and x_BK.requires_grad:
        y_BN: torch.Tensor = _Linear.apply(x_BK, w_NK, bias)
        return y_BN
    with stage("matmul"):
        return F.linear(x_BK, w_NK, bias)


def product(x_BK: torch.Tensor, packed: Packed) -> torch.Tensor:
    """x Wᵀ + bias for a packed half, differentiable in x."""
    if torch.is_grad_enabled() and x_BK.requires_grad:
        y_BN: torch.Tensor = _Product.apply(x_BK, packed)
        return y_BN
    part_BN: torch.Tensor = packed(x_BK)
    return part_BN


def _contiguous(grad: torch.Tensor) -> torch.Tensor:
    if grad.is_contiguous():
        return grad
    with stage("layout"):
        return copied(grad.contiguous())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BK: torch.Tensor, w_NK: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(w_NK)
        with stage("matmul"):
            return F.linear(x_BK, w_NK, bias)

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (w_NK,) = ctx.saved_tensors
        grad_y_BN = _contiguous(grad_y_BN)
        with stage("grad_x"):
            return grad_y_BN @ w_NK, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BK: torch.Tensor, packed: Packed) -> torch.Tensor:
        ctx.packed = packed
        y_BN: torch.Tensor = packed(x_BK)
        return y_BN

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return ctx.packed.grad_input(_contiguous(grad_y_BN)), None
