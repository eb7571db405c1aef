"""Scores that are trained beside a weight: to autograd, the gradient of W goes on to them too."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.training.recipes.base import Recipe


def handing_on(w_NK: torch.Tensor, scores: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """W (N, K), whose gradient is handed on to the scores, as the recipe has it, and straight through to W; where W is
    frozen the scores themselves, whose gradient needs none of W."""
    if not w_NK.requires_grad:
        return scores
    return _HandingOn.apply(w_NK, scores, recipe)  # type: ignore[no-any-return]


class _HandingOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_NK: torch.Tensor, scores: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        ctx.recipe = recipe
        return w_NK.view_as(w_NK)

    @staticmethod
    def backward(ctx: Any, grad_NK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        _, needs_scores, _ = ctx.needs_input_grad
        return grad_NK, ctx.recipe.grad_scores(grad_NK) if needs_scores else None, None
