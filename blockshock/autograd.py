"""The product of every method, forward and backward, in named stages.

In backward grad_y is made contiguous first: a loss such as ``y.sum()`` hands over an expanded tensor of stride zero,
which sparse kernels read as if it were dense memory. Then comes grad_X, and while the ranks agree on it, the gradient
of the weights (the order of Megatron-LM, Shoeybi et al., arXiv 1909.08053).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from blockshock.collectives import Entry
from blockshock.kernels import Packed
from blockshock.stages import copied, stage
from blockshock.storages import Storage

Weight = Packed | Storage
"""A frozen weight, or one that is trained."""


def product(x_BK: torch.Tensor, weight: Weight, entry: Entry) -> torch.Tensor:
    """entry(x) Wᵀ + bias, differentiable in x and in the parameters of a trained weight."""
    parameter, bias = (weight.parameter, weight.bias) if isinstance(weight, Storage) else (None, None)
    if torch.is_grad_enabled() and (x_BK.requires_grad or parameter is not None):
        y_BN: torch.Tensor = _Product.apply(x_BK, parameter, bias, weight, entry)
        return y_BN
    part_BN: torch.Tensor = weight(entry.take(x_BK))
    return part_BN


def _contiguous(grad: torch.Tensor) -> torch.Tensor:
    if grad.is_contiguous():
        return grad
    with stage("layout"):
        return copied(grad.contiguous())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BK: torch.Tensor,
        parameter: nn.Parameter | None,
        bias: nn.Parameter | None,
        weight: Weight,
        entry: Entry,
    ) -> torch.Tensor:
        ctx.weight, ctx.entry, ctx.writes = weight, entry, None
        x_BS = entry.take(x_BK)
        saved = [] if parameter is None else [x_BS]
        if torch.compiler.is_compiling():
            # What backward reads of the packing then is watched by autograd, if it is saved.
            saved = [*saved, *weight.tensors()]  # torch 2.11 traces no += of these
        else:
            ctx.writes = weight.writes
        ctx.save_for_backward(*saved)
        y_BN: torch.Tensor = weight(x_BS)
        return y_BN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        weight, (needs_x, needs_weight, needs_bias, *_) = ctx.weight, ctx.needs_input_grad
        # Where a graph breaks, forward may have been compiled and backward not: autograd looks when it hands over.
        looks = needs_weight or ctx.writes is None
        saved: tuple[torch.Tensor, ...] = ctx.saved_tensors if looks else ()
        if needs_x and ctx.writes is not None and not torch.compiler.is_compiling():
            weight.check_since(ctx.writes)
        grad_y_BN = _contiguous(grad_y_BN)
        agree = ctx.entry.give_back(weight.grad_input(grad_y_BN)) if needs_x else None
        grad_w = weight.grad_weight(grad_y_BN, saved[0]) if needs_weight else None
        grad_bias = weight.grad_bias(grad_y_BN) if needs_bias else None
        return (None if agree is None else agree()), grad_w, grad_bias, None, None
