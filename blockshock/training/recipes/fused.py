"""The same block on a GPU, where matrices are made 2:4 and packed in one pass: no thinned activation lies anywhere.

z is read once, and what comes of it are both packings of a; the gradient of z, read once, gives both packings of ∇z. Of
masks by rows the packings over tokens are of what stays along features, thinned. The features that are not thinned are
written dense, of a and of ∇z, while the latter is packed: they have products of their own. A ∇z that is to be dense
takes the place of ∇a, which is read once likewise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from blockshock.kernels import gradient24, make24
from blockshock.kernels.cusparselt_anew import times_packed
from blockshock.kernels.cusparselt_thread import claim_thread
from blockshock.stages import stage
from blockshock.training.recipes.packing import filled_up

Tensors = tuple[torch.Tensor | None, ...]


def fused_block(
    x_BD: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor | None],
    second: tuple[torch.Tensor, torch.Tensor | None],
    making: make24.Making,
    gradient: str = "sp24",
    mask: torch.Tensor | None = None,
    factor: float = 1.0,
    others: int = 0,
) -> torch.Tensor:
    """y (T, N) = factor · S(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂, or act(S(…)), in bf16 or fp16.

    Args:
        making: of tiles, or of rows first; how S chooses, and the activation function.
        gradient: as of ``Activation``.
        mask: where S is given: as of ``make24``, for tokens filled up to a multiple of 64.
        others: of rows first: so many features, those with fewest zeros, are dense in products over tokens.
    """
    claim_thread(x_BD.device)
    if making.along == "rows_first" and not torch.is_grad_enabled():
        making, others = making._replace(along="rows"), 0
    return _Block.apply(x_BD, *first, *second, making, gradient, mask, factor, others)  # type: ignore[no-any-return]


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
        gradient: str,
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
        ctx.making, ctx.gradient, ctx.factor = making, gradient, factor
        mask = mask if made.mask is None else made.mask
        ctx.save_for_backward(x_BD, w_HD, w_NH, z_BH, made.columns, mask, dense)
        return y_BN if bias_N is None else y_BN + bias_N

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> Tensors:  # type: ignore[override]
        _, _, w_NH, _, columns, _, dense = ctx.saved_tensors
        *_, needs_w2, needs_b2 = ctx.needs_input_grad[:5]
        grad_b2 = grad_y_BN.sum(0) if needs_b2 else None
        grad_y_BN = grad_y_BN if ctx.factor == 1 else grad_y_BN * ctx.factor
        filled_BN, packs = filled_up(grad_y_BN), ctx.gradient == "sp24"
        with stage("grad_x"):
            # Which tokens' ∇z stay goes by its last bit: it is that of a product of no more tokens than there are.
            chooses = packs and ctx.making.along == "rows_first"
            grad_a_BH = filled_up(grad_y_BN @ w_NH) if chooses else filled_BN @ w_NH
        *of_first, values = (_packed_back if packs else _dense_back)(ctx, grad_a_BH)
        grad_w2 = _over_tokens(columns, filled_BN, dense, values, turned=True) if needs_w2 else None
        return *of_first, grad_w2, grad_b2, None, None, None, None, None


def _packed_back(ctx: Any, grad_a_BH: torch.Tensor) -> Tensors:
    """The gradients of x, W₁ and b₁, as far as they are needed, by a ∇z that is made 2:4; and of ``a`` the features
    that are dense, as of ``_over_tokens``."""
    x_BD, w_HD, _, z_BH, _, mask, dense = ctx.saved_tensors
    needs_x, needs_w1, needs_b1, *_ = ctx.needs_input_grad
    making = ctx.making._replace(choice="given", first=False)
    with stage("sparsify"):
        made = make24.make24(grad_a_BH, making, mask, z_RC=z_BH, with_sums=needs_b1, others=dense)
    assert made.rows is not None
    assert made.columns is not None
    gradients, values = (None, None) if made.others is None else made.others
    grad_x = times_packed(made.rows, len(z_BH), w_HD, "rows", "grad_x")[: len(x_BD)] if needs_x else None
    grad_w1 = _over_tokens(made.columns, filled_up(x_BD), dense, gradients, turned=False) if needs_w1 else None
    return grad_x, grad_w1, None if made.sums is None else made.sums.sum(0).to(x_BD.dtype), values


def _dense_back(ctx: Any, grad_a_BH: torch.Tensor) -> Tensors:
    """The same by a ∇z that is dense, in the place of ∇a."""
    x_BD, w_HD, _, z_BH, _, mask, dense = ctx.saved_tensors
    needs_x, needs_w1, needs_b1, *_ = ctx.needs_input_grad
    straight = ctx.gradient == "ste"
    with stage("sparsify"):
        sums, values = gradient24.gradient24_(grad_a_BH, z_BH, mask, ctx.making, straight, needs_b1, dense)
    grad_z_BH = grad_a_BH[: len(x_BD)]
    with stage("grad_x"):
        grad_x = grad_z_BH @ w_HD if needs_x else None
    with stage("grad_w"):
        grad_w1 = grad_z_BH.T @ x_BD if needs_w1 else None
    return grad_x, grad_w1, None if sums is None else sums.sum(0).to(x_BD.dtype), values


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
