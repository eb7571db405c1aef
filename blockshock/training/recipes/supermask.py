"""Block sparsity with trained scores: one a block, and gradients that go straight through."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.errors import InputError
from blockshock.matrices import check_level, check_size_of_blocks, generator, in_blocks, why_not_blocks
from blockshock.training.recipes.base import RECIPES, Recipe


@RECIPES.register("supermask")
@dataclass
class Supermask(Recipe):
    """Of all blocks of W those of the largest scores multiply. The optimizer trains the scores beside W.

    A score that is at least the quantile of ``level`` keeps its block: of n all but round(level · (n − 1)), among
    equal scores the first ones. The mask is that of the scores after each step. Gradients go straight through to all
    of W. That of a score is the sum of ∇S(W) over its block, as SuperBlock has it: without the factor W of the
    derivative of mask ⊙ W. Scores are drawn uniformly from ±1 / √(blocks of a row).

    Args:
        size: rows, and columns, of a block: 8, 16, 32, 64 or 128.
        level: share of blocks that are dropped, from 0 up to below 1.
        seed: of the scores.
    """

    operand = "W, in blocks"
    source = "SuperBlock (pytorch/ao, 2024); scores: Ramanujan et al., arXiv 1911.13299"
    prunes, is_24, form = True, False, "blocks"
    size: int = 64
    level: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size_of_blocks(self.size)
        check_level(self.level)

    def unsuitable(self, N: int, K: int) -> str | None:
        return why_not_blocks(N, K, self.size)

    def elements_beside(self, N: int, K: int) -> int:
        return N // self.size * (K // self.size)

    def kept(self, blocks: int) -> int:
        return blocks - round(self.level * (blocks - 1))

    def scores(self, w_NK: torch.Tensor) -> torch.Tensor:
        if reason := self.unsuitable(*w_NK.shape):
            raise InputError(reason)
        rows, columns = (size // self.size for size in w_NK.shape)
        # Layers of one shape begin with other scores, replicas of one layer with the same.
        first = w_NK.detach()[0, :4].float().view(torch.int32).sum().item()
        stream = generator(torch.device("cpu"), self.seed, 10, int(first))
        drawn_RC = torch.rand(rows, columns, generator=stream, dtype=torch.float64).mul_(2).sub_(1)
        return (drawn_RC / columns**0.5).to(w_NK)

    def of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        count = self.kept(scores.numel())
        order = scores.detach().flatten().argsort(descending=True, stable=True)
        return torch.zeros_like(order, dtype=torch.bool).scatter_(0, order[:count], True).view(scores.shape)

    def spread(self, kept_RC: torch.Tensor) -> torch.Tensor:
        rows, columns = kept_RC.shape
        spread = kept_RC[:, None, :, None].expand(rows, self.size, columns, self.size)
        return spread.reshape(rows * self.size, columns * self.size).contiguous()  # of one block that is a view

    def grad_scores(self, grad_NK: torch.Tensor) -> torch.Tensor:
        return in_blocks(grad_NK, self.size).sum((-2, -1))

    def grad_scores_alone(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Over a block the sum of all products of a ∇y and an x of a token is the product of their sums.
        wide = torch.promote_types(x_BK.dtype, torch.float32)
        grad_BR, x_BC = (one.unflatten(1, (-1, self.size)).sum(-1, dtype=wide) for one in (grad_y_BN, x_BK))
        return (grad_BR.T @ x_BC).to(dtype)

    def mask(self, w_NK: torch.Tensor) -> torch.Tensor:
        return self.spread(self.of_scores(self.scores(w_NK)))
