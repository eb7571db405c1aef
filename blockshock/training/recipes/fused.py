"""The same block on a GPU, where matrices are made 2:4 and packed in one pass: no thinned activation lies anywhere.

z is read once, and what comes of it are both packings of a; the gradient of z, read once, gives both packings of ∇z. Of
masks by rows the packings over tokens are of what stays along features, thinned. The features that are not thinned are
written dense, of a and of ∇z, while the latter is packed: they have products of their own.
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
    others: int = 0,
) -> torch.Tensor:
    """y (T, N) = factor · S(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂, or act(S(…)), in bf16 or fp16; ∇z is masked alike.

    Args:
        making: of tiles, or of rows first; how S chooses, and the activation function.
        mask: where S is given: as of ``make24``, for tokens filled up to a multiple of 64.
        others: of rows first: so many features, those with fewest zeros, are dense in products over tokens.
    """
    claim_thread(x_BD.device)
    if making.along == "rows_first" and not torch.is_grad_enabled():
        making, others = making._replace(along="rows"), 0
    return _Block.apply(x_BD, *first, *second, making, mask, factor, others)  # type: ignore[no-any-return]


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
        others: int,
    ) -> torch.Tensor:
        with stage("matmul"):
            z_BH = F.linear(x_BD, w_HD, bias_H)
        with stage("sparsify"):
            z_BH = filled_up(z_BH)
            made = make24.make24(z_BH, making, mask, with_counts=others > 0)
            dense = None if made.counts is None else made.counts.sum(0).argsort(stable=True)[-others:]
        assert made.rows is not None
        y_BN = times_packed(made.rows, len(z_BH), w_NH.T, "rows", "matmul")[: len(x_BD)]
        y_BN = y_BN if factor == 1 else y_BN * factor
        ctx.making, ctx.factor = making._replace(choice="given", first=False), factor
        mask = mask if made.mask is None else made.mask
        ctx.save_for_backward(x_BD, w_HD, w_NH, z_BH, made.columns, mask, dense)
        return y_BN if bias_N is None else y_BN + bias_N

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_BD, w_HD, w_NH, z_BH, columns, mask, dense = ctx.saved_tensors
        tokens, factor = len(x_BD), ctx.factor
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2, *_ = ctx.needs_input_grad
        grad_b2 = grad_y_BN.sum(0) if needs_b2 else None
        grad_y_BN = grad_y_BN if factor == 1 else grad_y_BN * factor
        filled_BN = filled_up(grad_y_BN)
        with stage("grad_x"):
            # Which tokens' ∇z stay goes by its last bit: it is that of a product of no more tokens than there are.
            chooses = ctx.making.along == "rows_first"
            grad_a_BH = filled_up(grad_y_BN @ w_NH) if chooses else filled_BN @ w_NH
        with stage("sparsify"):
            made = make24.make24(grad_a_BH, ctx.making, mask, z_RC=z_BH, with_sums=needs_b1, others=dense)
        assert made.rows is not None
        assert made.columns is not None
        gradients, values = (None, None) if made.others is None else made.others
        grad_x = times_packed(made.rows, len(z_BH), w_HD, "rows", "grad_x")[:tokens] if needs_x else None
        grad_w1 = _over_tokens(made.columns, filled_up(x_BD), dense, gradients, turned=False) if needs_w1 else None
        grad_w2 = _over_tokens(columns, filled_BN, dense, values, turned=True) if needs_w2 else None
        grad_b1 = None if made.sums is None else made.sums.sum(0).to(x_BD.dtype)
        return grad_x, grad_w1, grad_b1, grad_w2, grad_b2, None, None, None, None


def _over_tokens(
    columns: torch.Tensor, x_BK: torch.Tensor, dense: torch.Tensor | None, dense_OB: torch.Tensor | None, turned: bool
) -> torch.Tensor:
    """aᵀ x (h, K), or if turned its transpose, of an ``a`` (B, h) of which the columns are packed.

    Args:
        dense: the features that are not thinned, if any are not: and those, (features, B).
    """
    if dense is None or dense_OB is None:
        return times_packed(columns, len(columns), x_BK, "columns", "grad_w", turned=turned)
    if len(dense) < len(columns):
        found = times_packed(columns, len(columns), x_BK, "columns", "grad_w", turned=turned)
    else:
        found = x_BK.new_empty((x_BK.shape[1], len(columns)) if turned else (len(columns), x_BK.shape[1]))
    with stage("grad_w"):
        exact = x_BK.T @ dense_OB.T if turned else dense_OB @ x_BK
        return found.index_copy_(int(turned), dense, exact)
