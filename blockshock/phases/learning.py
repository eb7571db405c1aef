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

import torch
from torch.nn import functional as F

from blockshock.matrices import product
from blockshock.phases.case import Built, Case
from blockshock.phases.definition import Definition, distance, is_sum_of_blocks, limit
from blockshock.phases.lesson import Lesson
from blockshock.training import RecipeStorage, optimizer_of


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
        for what, distances, limits in (
            ("the output", self.loss_distance, self.loss_limit),
            ("the gradient of W", self.weight_distance, self.weight_limit),
        ):
            for step, (found, passes) in enumerate(zip(distances, limits, strict=True)):
                if not found <= passes:  # so that NaN fails
                    return f"step {step}: {what} is {found:.3g} from what the recipe says, at most {passes:.3g} passes"
        if self.mask_faults:
            return self.mask_faults[0]
        if not self.losses[-1] < 0.9 * self.losses[0]:
            return f"nothing was learned: the loss went from {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        return None


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
        grad_BN, met_BK = definition.drawn(y_BN.grad), definition.met(x_BK)
        right_NK = definition.gradient(grad_BN, met_BK, w_NK)
        optimizer.step()
        schedule.step()
        right_BN = F.linear(met_BK, weights_NK, None if added is None else added.double())
        met, sums = met_BK.to(x_BK.dtype), storage.packed.sums
        dense_BN = F.linear(met, weights_NK.to(x_BK.dtype), added)
        found.loss_distance.append(distance(y_BN, right_BN))
        found.loss_limit.append(limit(distance(dense_BN, right_BN), x_BK.dtype, sums.error(case.K)))
        found.weight_distance.append(distance(storage.parameter.grad, right_NK))
        dense_NK, rounded = product(grad_BN.to(x_BK.dtype).T, met, storage.parameter.dtype), definition.rounded
        off = distance(dense_NK.to(rounded), grad_BN.T @ met_BK)
        found.weight_limit.append(limit(off, rounded, sums.error(len(x_BK))))
        found.losses.append(loss.item())
        if storage.scores is not None and not is_sum_of_blocks(storage):
            found.mask_faults.append(f"step {step}: the gradient of the scores is not the sum of ∇W over their blocks")
        if found.mask_every and (step + 1) % found.mask_every == 0:
            found.flip_rate.append(storage.flipped.item())
    return found
