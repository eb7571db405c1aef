"""Phase 3 of a recipe: does it train as it says? Fifty steps, each beside its definition in float64.

No dense run is beside it, for a recipe is not equivalent to one; and no other run of the recipe, for the least rounding
turns a mask that is nearly undecided. Instead each step begins where the layer is. From its parameter, float64 makes
what multiplies, the output, and the gradient that the optimizer is to meet, decay included; what is drawn, it draws
from the same seed. An output or a gradient may be twice as far from those as the dense product of the same operands
is, as in phase 0. A mask must keep as much as its definition can, and stay when none is due; one of trained scores must
be of those, and their gradient the sum that the recipe says. And the loss must fall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from blockshock.matrices import in_blocks, product, transposable_tiles
from blockshock.phases.case import Built, Case
from blockshock.phases.lesson import Lesson
from blockshock.training import Recipe, RecipeStorage, optimizer_of
from blockshock.training.recipes.estimators import drawn, stream

ALLOWED = 2.0
ROUNDED, ROUNDED_W = 1e-6, 1e-4
"""Of the most that a mask could keep, what roundings of sums may cost; and those of W to bf16, of which a GPU finds the
tiles."""
ROUNDED_SUM = 8
"""Roundings of the largest size that a sum over a block may cost."""


@dataclass
class LearningResult:
    """What each step was, beside what the recipe says.

    Attributes:
        weight_distance, weight_limit: relative Frobenius distance of the gradient of W, and what passes.
        loss_distance, loss_limit: of the output.
        losses: before each step.
        mask_every: steps from one mask to the next; 0 where none is made.
        flip_rate: share of W that each new mask keeps and the one before dropped, or the other way round.
        mask_faults: of masks, and of when they come.
    """

    weight_distance: list[float]
    weight_limit: list[float]
    loss_distance: list[float]
    loss_limit: list[float]
    losses: list[float]
    mask_every: int
    flip_rate: list[float]
    mask_faults: list[str]

    def failure(self) -> str | None:
        """None if each step was what the recipe says, and it learns, else a sentence that says where not."""
        for what, distance, limit in (
            ("the output", self.loss_distance, self.loss_limit),
            ("the gradient of W", self.weight_distance, self.weight_limit),
        ):
            for step, (found, passes) in enumerate(zip(distance, limit, strict=True)):
                if not found <= passes:  # so that NaN fails
                    return f"step {step}: {what} is {found:.3g} from what the recipe says, at most {passes:.3g} passes"
        if self.mask_faults:
            return self.mask_faults[0]
        if not self.losses[-1] < 0.9 * self.losses[0]:
            return f"nothing was learned: the loss went from {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        return None


class Definition:
    """What a recipe's layer does in the step that comes next, in float64, from its parameter alone."""

    def __init__(self, storage: RecipeStorage) -> None:
        self.storage, self.recipe = storage, storage.recipe
        w_NK = self.w_NK
        self._scale = _nearest_scale(w_NK) if self.recipe.form == "soft" else None
        self._mask_NK, self._was_sparse = _copied(storage.mask_NK), False

    @property
    def w_NK(self) -> torch.Tensor:
        return self.storage.parameter.detach().double()

    def fault(self, step: int) -> str | None:
        """What is wrong with the mask in force; from now on that is the one that must stay."""
        storage, recipe, held_NK = self.storage, self.recipe, self.storage.mask_NK
        is_sparse = recipe.is_sparse(step, False)
        due = is_sparse and (step % recipe.every == 0 or not self._was_sparse) and (step == 0 or recipe.keeps_dropped)
        before_NK, self._mask_NK, self._was_sparse = self._mask_NK, _copied(held_NK), is_sparse
        if is_sparse != storage.is_sparse:
            return f"step {step}: it should be {'sparse' if is_sparse else 'dense'}, and is not"
        if held_NK is None or before_NK is None or not is_sparse:
            return None
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
        return w_NK.to(dtype).double()

    @property
    def rounded(self) -> torch.dtype:
        """To which the gradient of W is rounded: the sparse tensor cores give that of their operands."""
        storage = self.storage
        drawn = self.recipe.samples and storage.packed.kernel != "dense"
        return storage.packed.values.dtype if drawn else storage.parameter.dtype

    def drawn(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """∇y as the gradient of W is made of it."""
        if not (self.recipe.samples and self.storage.is_sparse):
            return grad_y_BN
        draws = stream(grad_y_BN.device, self.recipe.seed, self.storage.draws - 1)  # those that were made just now
        return drawn(grad_y_BN, draws).T

    def gradient(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        """What the optimizer is to meet, of a W (N, K) that it has not yet changed."""
        grad_NK, recipe = grad_y_BN.double().T @ x_BK.double(), self.recipe
        if self._mask_NK is None or not self._was_sparse:
            return grad_NK
        if not recipe.keeps_dropped:
            return grad_NK * self._mask_NK
        return grad_NK + recipe.decay * (~self._mask_NK * w_NK)


def run(case: Case, built: Built, lesson: Lesson) -> LearningResult:
    """Train the recipe's layer through a lesson, without clipping."""
    method, found = built.method, LearningResult([], [], [], [], [], 0, [], [])
    (storage,) = method.storages()
    assert isinstance(storage, RecipeStorage)
    definition, bias = Definition(storage), method.bias
    found.mask_every = storage.recipe.every if storage.recipe.prunes and storage.recipe.keeps_dropped else 0
    optimizer = replace(optimizer_of(case.optimizer or "adamw"), lr=lesson.lr).build(method.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lesson.rate)
    for step in range(lesson.steps):
        (x_BK, target_BN), w_NK = lesson.batch(step), definition.w_NK
        if (fault := definition.fault(step)) is not None:
            found.mask_faults.append(fault)
        weights_NK, added = definition.weights(x_BK.dtype), None if bias is None else bias.detach().to(x_BK.dtype)
        optimizer.zero_grad()
        y_BN = method(x_BK)
        y_BN.retain_grad()
        loss = F.mse_loss(y_BN.float(), target_BN)
        loss.backward()  # type: ignore[no-untyped-call]
        assert y_BN.grad is not None
        grad_BN = definition.drawn(y_BN.grad)
        right_NK = definition.gradient(grad_BN, x_BK, w_NK)
        optimizer.step()
        schedule.step()
        right_BN = F.linear(x_BK.double(), weights_NK, None if added is None else added.double())
        dense_BN = F.linear(x_BK, weights_NK.to(x_BK.dtype), added)
        found.loss_distance.append(_distance(y_BN, right_BN))
        found.loss_limit.append(_limit(_distance(dense_BN, right_BN), x_BK.dtype))
        found.weight_distance.append(_distance(storage.parameter.grad, right_NK))
        dense_NK, rounded = product(grad_BN.T, x_BK, storage.parameter.dtype), definition.rounded
        plain_NK = grad_BN.double().T @ x_BK.double()
        found.weight_limit.append(_limit(_distance(dense_NK.to(rounded), plain_NK), rounded))
        found.losses.append(loss.item())
        if storage.scores is not None and not _is_sum_of_blocks(storage):
            found.mask_faults.append(f"step {step}: the gradient of the scores is not the sum of ∇W over their blocks")
        if found.mask_every and (step + 1) % found.mask_every == 0:
            found.flip_rate.append(storage.flipped.item())
    return found


def _limit(distance: float, dtype: torch.dtype) -> float:
    return ALLOWED * max(distance, torch.finfo(dtype).eps)


def _distance(found: Any, right: torch.Tensor) -> float:
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


def _is_sum_of_blocks(storage: RecipeStorage) -> bool:
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
