"""The same block on a GPU, where matrices are made 2:4 and packed in one pass: no thinned activation lies anywhere.

z is read once, and what comes of it are both packings of a; the gradient of z, read once, gives both packings of ∇z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from blockshock.kernels import make24
from blockshock.kernels.cusparselt_anew import times_packed
from blockshock.kernels.cusparselt_thread import claim_thread
from blockshock.stages import stage
from blockshock.training.recipes.packing import filled_up


def fused_block(
    x_BD: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor | None],
    second: tuple[torch.Tensor, torch.Tensor | None],
    making: make24.Making,
    mask: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """y (T, N) = factor · S(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂, or act(S(…)), in bf16 or fp16; ∇z is masked alike.

    Args:
        making: of tiles; how S chooses, and the activation function.
        mask: where S is given: as of ``make24``, for tokens filled up to a multiple of 64.
    """
    claim_thread(x_BD.device)
    return _Block.apply(x_BD, *first, *second, making, mask, factor)  # type: ignore[no-any-return]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BD: torch.Tensor,
        w_HD: torch.Tensor,
        bias_H: torch.Tensor | None,
        w_NH: torch.Tensor,
        bias_N: torch.Tensor | None,
        making: make24.Making,
        mask: torch.Tensor | None,
        factor: float,
    ) -> torch.Tensor:
        with stage("matmul"):
            z_BH = F.linear(x_BD, w_HD, bias_H)
        with stage("sparsify"):
            z_BH = filled_up(z_BH)
            made = make24.make24(z_BH, making, mask)
        assert made.rows is not None
        y_BN = times_packed(made.rows, len(z_BH), w_NH.T, "rows", "matmul")[: len(x_BD)]
        y_BN = y_BN if factor == 1 else y_BN * factor
        ctx.activation, ctx.factor = making.activation, factor
        ctx.save_for_backward(x_BD, w_HD, w_NH, z_BH, made.columns, mask if made.mask is None else made.mask)
        return y_BN if bias_N is None else y_BN + bias_N

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_BD, w_HD, w_NH, z_BH, columns, mask = ctx.saved_tensors
        (B, H), tokens, factor = z_BH.shape, len(x_BD), ctx.factor
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2, *_ = ctx.needs_input_grad
        grad_b2 = grad_y_BN.sum(0) if needs_b2 else None
        grad_y_BN = filled_up(grad_y_BN if factor == 1 else grad_y_BN * factor)
        grad_w2 = times_packed(columns, H, grad_y_BN, "columns", "grad_w", turned=True) if needs_w2 else None
        with stage("grad_x"):
            grad_a_BH = grad_y_BN @ w_NH
        with stage("sparsify"):
            made = make24.make24(
                grad_a_BH, make24.Making("tiles", "given", ctx.activation), mask, z_RC=z_BH, with_sums=needs_b1
            )
        assert made.rows is not None
        assert made.columns is not None
        grad_x = times_packed(made.rows, B, w_HD, "rows", "grad_x")[:tokens] if needs_x else None
        grad_w1 = times_packed(made.columns, H, filled_up(x_BD), "columns", "grad_w") if needs_w1 else None
        grad_b1 = None if made.sums is None else made.sums.sum(0).to(x_BD.dtype)
        return grad_x, grad_w1, grad_b1, grad_w2, grad_b2, None, None, None
