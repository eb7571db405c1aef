"""What the state of a recipe's layer holds beside the weights, and why one that was found cannot be gone on from."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from blockshock.errors import InputError, MaskError, UnknownName
from blockshock.matrices import check_2to4, check_transposable
from blockshock.matrices.masks import DenseMask
from blockshock.training.recipes.base import Recipe, recipe_of, spec_of

SPEC, COUNTS, MASK, SCALE, SCORES = ("recipe", "recipe_counts", "recipe_mask", "recipe_scale", "recipe_scores")
"""Names of what a state holds: the spec as bytes, steps, draws and whether the optimizer has switched, and the rest."""

PROGRESS = (SPEC, COUNTS, MASK, SCALE, SCORES)

MOST_COUNTED = 2**53


def state_of(
    recipe: Recipe, counts: tuple[int, int, int], held: Mapping[str, torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """The state: copies of what is held, as far as it is."""
    spec = torch.tensor(list(spec_of(recipe).encode()), dtype=torch.uint8)
    kept = {name: tensor.detach().clone() for name, tensor in held.items() if tensor is not None}
    return {SPEC: spec, COUNTS: torch.tensor(counts)} | kept


def faults_of_state(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], recipe: Recipe) -> str | None:
    """Why a state cannot be gone on from, with the name and the value that is wrong; None if it can.

    Args:
        own: the state of the layer that is to go on.
        recipe: of that layer.
    """
    for name in (SPEC, COUNTS):
        if name not in found:
            return f"it has {', '.join(found)}, and no {name}: load all that is named recipe…, or nothing of it"
    if fault := _not_counts(found[COUNTS]):
        return fault
    try:
        was = bytes(found[SPEC].flatten().to(torch.uint8).tolist()).decode()
    except UnicodeDecodeError as error:
        return f"{SPEC} must be the bytes of a recipe's name, and is no UTF-8 at byte {error.start}: it is damaged"
    if not _is_of(was, now := spec_of(recipe)):
        return (
            f"it is of the recipe {was} after {int(found[COUNTS][0])} steps, and this layer's is {now}: go on with "
            "that, or leave out what is named recipe…, and the schedule begins anew"
        )
    for name, tensor in own.items():
        if name != SPEC and (name not in found or found[name].shape != tensor.shape):
            return f"{name} must be {tuple(tensor.shape)}, as {now} has it"
    wrong = {MASK: lambda mask: _not_mask(mask, recipe), SCALE: _not_scale, SCORES: _not_scores}
    return next((fault for name in wrong if name in own and (fault := wrong[name](found[name]))), None)


def _is_of(was: str, now: str) -> bool:
    """Whether two specs are of one recipe: one that was saved before a parameter came has what is usual of it."""
    try:
        return spec_of(recipe_of(was)) == now
    except (InputError, UnknownName):
        return False


def _not_counts(counts: torch.Tensor) -> str | None:
    told = f"{COUNTS} must be three whole numbers, steps and draws in 0 … 2⁵³ and 0 or 1"
    if counts.shape != (3,) or counts.dtype != torch.int64:
        return f"{told}, got {tuple(counts.shape)} of {counts.dtype}"
    steps, draws, switched = counts.tolist()
    valid = 0 <= steps <= MOST_COUNTED and 0 <= draws <= MOST_COUNTED and switched in (0, 1)
    return None if valid else f"{told}, got {steps}, {draws}, {switched}"


def _not_mask(mask_NK: torch.Tensor, recipe: Recipe) -> str | None:
    try:
        (check_transposable if recipe.turns else check_2to4)(DenseMask(mask_NK))
    except MaskError as error:
        return f"{MASK} is no mask of {spec_of(recipe)}: {error}"
    return None


def _not_scale(scale: torch.Tensor) -> str | None:
    value = scale.item()
    return None if 0 < value < float("inf") else f"{SCALE} must be a positive number, got {value}"


def _not_scores(scores: torch.Tensor) -> str | None:
    if scores.is_floating_point() and scores.isfinite().all():
        return None
    return f"{SCORES} must be finite numbers, of which a mask can be made"
