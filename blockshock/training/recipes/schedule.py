"""What an optimizer's step does to a weight that a recipe trains, by how many steps there were before it."""

from __future__ import annotations

from typing import NamedTuple

from torch.optim import Optimizer

from blockshock.training.recipes.base import Recipe


class Kind(NamedTuple):
    """Of a step. Steps of one kind do the same on a device: one CUDA graph is all of them.

    Attributes:
        before, after: whether S(W) multiplies in the pass that it ends, and in the next one.
        takes_mask: a mask is looked for.
    """

    before: bool
    after: bool
    takes_mask: bool


def kind_of(recipe: Recipe, every: int, steps: int, switched: bool, switches: bool) -> Kind:
    """Of the step after so many.

    Args:
        every: steps from one mask to the next; 0 for no other one.
        switched, switches: whether the optimizer has said that sparse training begins, before the step and by its end.
    """
    before, after = recipe.is_sparse(steps, switched), recipe.is_sparse(steps + 1, switches)
    due = bool(every) and (steps + 1) % every == 0
    return Kind(before, after, after and (not before or (due and recipe.keeps_dropped)))


def has_switched(optimizer: Optimizer | None) -> bool:
    """Whether an optimizer says that sparse training begins; most never do."""
    return bool(getattr(optimizer, "switched", False))


def skips(optimizer: Optimizer) -> bool:
    """Whether a scaler has found inf, and this optimizer leaves the step out by itself, as fused ones do."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
