"""What a recipe's layer does in a step, in float64, from its parameter alone, and how far from that may be right."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.matrices import in_blocks, transposable_tiles
from blockshock.training import EIGHT, Recipe, RecipeStorage, of_gradients, of_values, represented
from blockshock.training.recipes.estimators import drawn, stream

ALLOWED = 2.0
ROUNDED, ROUNDED_W = 1e-6, 1e-4
"""Of the most that a mask could keep, what roundings of sums may cost; and those of W to bf16, of which a GPU finds the
tiles."""
ROUNDED_SUM = 8
"""Roundings of the largest size that a sum over a block may cost."""


class Definition:
    """What a recipe's layer does in the step that comes next, in float64, from its parameter alone."""

    def __init__(self, storage: RecipeStorage) -> None:
        self.storage, self.recipe = storage, storage.recipe
        w_NK = self.w_NK
        self._scale = _nearest_scale(w_NK) if self.recipe.form == "soft" else None
        self._mask_NK, self._was_sparse = _copied(storage.mask_NK), False
        self._in_eight_bits = self.recipe.bits == EIGHT

    @property
    def w_NK(self) -> torch.Tensor:
        return self.storage.parameter.detach().double()

    def fault(self, step: int) -> str | None:
        """What is wrong with the mask in force; from now on that is the one that must stay."""
        storage, recipe, held_NK = self.storage, self.recipe, self.storage.mask_NK
        is_sparse = recipe.is_sparse(step, False)
        due = is_sparse and (not self._was_sparse or (step % recipe.every == 0 and recipe.keeps_dropped))
        before_NK, self._mask_NK, self._was_sparse = self._mask_NK, _copied(held_NK), is_sparse
        if is_sparse != storage.is_sparse:
            return f"step {step}: it should be {'sparse' if is_sparse else 'dense'}, and is not"
        if held_NK is None or before_NK is None or not is_sparse:
            return None
        if not recipe.keeps_dropped and (dropped := self.w_NK[~held_NK]).any():
            return f"step {step}: W holds {dropped[dropped != 0][0].item():.3g} where its mask drops"
        if not due:
            return None if torch.equal(held_NK, before_NK) else f"step {step}: the mask changed, and none was due"
        if storage.scores is not None:
            return _fault_of_blocks(held_NK, storage.scores.detach(), recipe, step)
        kept, most = (self.w_NK.abs() * held_NK).sum().item(), _most_kept(self.w_NK.abs(), recipe)
        most *= 1 - (ROUNDED_W if recipe.form == "tiles" and held_NK.is_cuda else ROUNDED)
        if not _is_24(held_NK, recipe):
            return f"step {step}: the mask is not 2:4"
        return f"step {step}: the mask keeps {kept:.6g} of Σ|w|, and {most:.6g} could be" if kept < most else None

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """What multiplies, rounded as it is for products of a dtype."""
        w_NK = self.w_NK
        if self._was_sparse and self._scale is not None:
            w_NK = _soft(w_NK) * self._scale
        elif self._was_sparse and self._mask_NK is not None:
            w_NK = w_NK * self._mask_NK
        w_NK = w_NK.to(dtype).double()
        if not self._in_eight_bits:
            return w_NK
        # A rounding of what is stored in eight bits may move it far: what is to be stored is taken as the layer has it.
        held_NK = self.storage.packed.values
        near = distance(held_NK, w_NK) <= limit(0.0, dtype)
        return represented(held_NK, of_values()) if near else w_NK

    def met(self, x_BK: torch.Tensor) -> torch.Tensor:
        """What of x multiplies, in float64."""
        return represented(x_BK, of_values()) if self._in_eight_bits else x_BK.double()

    @property
    def rounded(self) -> torch.dtype:
        """To which the gradient of W is rounded: the sparse tensor cores give that of their operands."""
        storage = self.storage
        drawn = self.recipe.samples and storage.packed.kernel != "dense"
        return storage.packed.values.dtype if drawn else storage.parameter.dtype

    def drawn(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """∇y as the gradient of W is made of it, in float64."""
        if not (self.recipe.samples and self.storage.is_sparse):
            return grad_y_BN.double()
        draws = stream(grad_y_BN.device, self.recipe.seed, self.storage.draws - 1)  # those that were made just now
        drawn_BN = drawn(grad_y_BN, draws).T
        return represented(drawn_BN, of_gradients()) if self._in_eight_bits else drawn_BN.double()

    def gradient(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        """What the optimizer is to meet, of a W (N, K) that it has not yet changed."""
        grad_NK, recipe = grad_y_BN.T @ x_BK, self.recipe
        if self._mask_NK is None or not self._was_sparse:
            return grad_NK
        if not recipe.keeps_dropped:
            return grad_NK * self._mask_NK
        return grad_NK + recipe.decay * (~self._mask_NK * w_NK)


def limit(found: float, dtype: torch.dtype, of_sums: float = 0.0) -> float:
    """The distance that passes.

    Args:
        found: that of the dense product.
        of_sums: what adding up may cost.
    """
    return ALLOWED * max(found, torch.finfo(dtype).eps, of_sums)


def distance(found: Any, right: torch.Tensor) -> float:
    """Relative, by Frobenius norms."""
    return ((found.double() - right).norm() / right.norm()).item()


def _copied(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.clone()


def _fault_of_blocks(mask_NK: torch.Tensor, scores_RC: torch.Tensor, recipe: Any, step: int) -> str | None:
    """Of blocks, all those whose score is at least the quantile of the level."""
    blocks = in_blocks(mask_NK, recipe.size).flatten(2)
    kept_RC, n = blocks.any(-1), scores_RC.numel()
    if not torch.equal(kept_RC, blocks.all(-1)):
        return f"step {step}: the mask is not of whole blocks"
    quantile = scores_RC.flatten().sort().values[round(recipe.level * (n - 1))]
    if torch.equal(kept_RC, scores_RC >= quantile):
        return None
    wrong = int((kept_RC ^ (scores_RC >= quantile)).sum())
    return f"step {step}: the mask is not that of its scores, at {wrong} of {n} blocks"


def is_sum_of_blocks(storage: RecipeStorage) -> bool:
    """Whether the gradient of the scores is that of W, summed over each block, up to the rounding of a sum."""
    scores, recipe, grad_NK = storage.scores, storage.recipe, storage.parameter.grad
    assert scores is not None
    if scores.grad is None or grad_NK is None:
        return False
    blocks = in_blocks(grad_NK.double(), recipe.size)  # type: ignore[attr-defined]
    passes = ROUNDED_SUM * torch.finfo(scores.dtype).eps * blocks.abs().sum((-2, -1))
    return bool(((scores.grad - blocks.sum((-2, -1))).abs() <= passes).all())


def _is_24(mask_NK: torch.Tensor, recipe: Recipe) -> bool:
    ways = (mask_NK, mask_NK.T) if recipe.turns else (mask_NK,)
    return all(bool((way.unflatten(1, (-1, 4)).sum(-1) == 2).all()) for way in ways)


def _most_kept(sizes_NK: torch.Tensor, recipe: Recipe) -> float:
    """Σ|w| that the best mask keeps."""
    if recipe.form == "tiles":
        blocks = sizes_NK.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
        most = (blocks @ transposable_tiles(sizes_NK.device).flatten(1).double().T).amax(-1)
    elif recipe.form in ("rows", "soft"):
        most = sizes_NK.unflatten(1, (-1, 4)).topk(2).values
    else:
        return 0.0
    return most.sum().item()


def _soft(w_NK: torch.Tensor) -> torch.Tensor:
    """sign(w)·max(|w| − t, 0), t being the second smallest |w| of each four."""
    fours = w_NK.unflatten(1, (-1, 4))
    threshold = fours.abs().sort(-1).values[..., 1:2]
    return (fours.sign() * (fours.abs() - threshold).clamp(min=0)).flatten(1)


def _nearest_scale(w_NK: torch.Tensor) -> torch.Tensor:
    soft_NK = _soft(w_NK)
    return (w_NK * soft_NK).sum() / soft_NK.square().sum()
