"""What a recipe promises is checked: faults that are planted in it are found, each by the phase that looks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from blockshock.measure import Accuracy, ErrorSums
from blockshock.phases import backward, correctness, trajectory
from blockshock.phases.case import Case
from blockshock.ranks import Ranks
from blockshock.training import RecipePacking, RecipeStorage
from blockshock.training.recipes import eight_bits, packing
from blockshock.training.recipes import storage as storage_module
from blockshock.training.recipes.eight_bits import PackedEightBits
from blockshock.training.recipes.fst import Fst
from blockshock.training.recipes.pruned import Pruned
from blockshock.training.recipes.s_ste import SSte
from blockshock.training.recipes.ste import Ste
from blockshock.training.recipes.supermask import Supermask
from blockshock.training.sparse import fixed_scale, mask_24

BLOCKS, EIGHT = "supermask:size=8:level=0.5", "s_ste:bits=8"
Fault = Callable[[pytest.MonkeyPatch], None]
CASE = Case("recipe", {"recipe": "fst:every=2"}, "gaussian", 64, 64, 16, "fp32", optimizer="adamw")


def no_decay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage_module, "masked_decay_", lambda grad, *_: grad)


def decay_of_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    plain = storage_module.masked_decay_
    patch.setattr(storage_module, "masked_decay_", lambda grad, w, mask, decay: plain(grad, w, ~mask, decay))


def biased_draws(patch: pytest.MonkeyPatch) -> None:
    """The two largest, as they are."""

    def biased(grad: torch.Tensor, x: torch.Tensor, draws: object, dtype: torch.dtype, bits: int) -> torch.Tensor:
        return (grad * mask_24(grad, 0)).T.to(dtype) @ x

    patch.setattr(storage_module, "sampled_grad_weight", biased)


def masks_that_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecipeStorage, "_take_mask", lambda self: None)


def masks_too_often(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fst, "every", 2)
    plain = RecipeStorage.begin

    def begin(self: RecipeStorage) -> None:
        plain(self)
        self.every = 1

    patch.setattr(RecipeStorage, "begin", begin)


def masks_of_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fst, "mask", lambda self, w_NK: mask_24(w_NK))


def masks_that_keep_the_smallest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ste, "mask", lambda self, w_NK: ~mask_24(w_NK))


def zeros_that_come_back(patch: pytest.MonkeyPatch) -> None:
    """What an optimizer remembers of dense steps moves what was dropped."""
    patch.setattr(Pruned, "first_sparse", lambda self: 0)


def weights_that_lag(patch: pytest.MonkeyPatch) -> None:
    """The packing is that of the step before."""
    patch.setattr(RecipePacking, "put", lambda self, *given: None)


def a_scale_for_each_step(patch: pytest.MonkeyPatch) -> None:
    plain = SSte.weights
    patch.setattr(SSte, "weights", lambda self, w_NK, mask, _: plain(self, w_NK, mask, 1.02 * fixed_scale(w_NK)))


def gradients_of_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    plain = RecipeStorage.grad_weight
    patch.setattr(RecipeStorage, "grad_weight", lambda self, grad, x: plain(self, grad, x) * self.mask_NK)


def scores_by_the_weights_too(patch: pytest.MonkeyPatch) -> None:
    """The derivative of mask ⊙ W, where the recipe says the sum of the gradient."""
    plain, kept = Supermask.grad_scores, []
    differentiated = RecipeStorage.differentiated
    patch.setattr(
        RecipeStorage, "differentiated", lambda self: (kept.append(self.parameter.detach()), differentiated(self))[1]
    )
    patch.setattr(Supermask, "grad_scores", lambda self, grad_NK: plain(self, grad_NK * kept[-1]))


def masks_of_more_blocks(patch: pytest.MonkeyPatch) -> None:
    plain = Supermask.of_scores
    patch.setattr(Supermask, "of_scores", lambda self, scores: plain(replace(self, level=self.level - 0.1), scores))


def masks_of_single_weights(patch: pytest.MonkeyPatch) -> None:
    spread, put, single = Supermask.spread, RecipePacking.put, mask_24(torch.ones(64, 64))
    patch.setattr(Supermask, "spread", lambda self, kept: spread(self, kept) & single)
    patch.setattr(RecipePacking, "put", lambda self, w_NK, *given: put(self, w_NK.where(single, 0), *given))


def activations_of_the_layers_dtype(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackedEightBits, "forward", lambda self, x: x @ (self.q_NK.to(x.dtype) * self.scale).T)


def gradients_as_what_goes_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(eight_bits, "of_gradients", eight_bits.of_values)


STEPS: list[tuple[str, Fault, str]] = [
    ("fst:every=2", no_decay, "the gradient of W"),
    ("sr_ste", decay_of_what_is_kept, "the gradient of W"),
    ("fst:every=2", biased_draws, "the gradient of W"),
    ("ste", gradients_of_what_is_kept, "the gradient of W"),
    ("fst:every=2", masks_that_stay, "could be"),
    ("step:latest=3", masks_that_stay, "could be"),
    ("fst:every=2", masks_too_often, "none was due"),
    ("fst:every=2", masks_of_rows, "not 2:4"),
    ("pruned:dense_until=3", zeros_that_come_back, "where its mask drops"),
    ("ste", masks_that_keep_the_smallest, "could be"),
    ("ste", weights_that_lag, "the output"),
    ("s_ste", a_scale_for_each_step, "the output"),
    (EIGHT, activations_of_the_layers_dtype, "the output"),
    (EIGHT, gradients_as_what_goes_forward, "the gradient of W"),
    (EIGHT, weights_that_lag, "the output"),
    (BLOCKS, scores_by_the_weights_too, "the gradient of the scores"),
    (BLOCKS, masks_of_more_blocks, "not that of its scores"),
    (BLOCKS, masks_of_single_weights, "not of whole blocks"),
    (BLOCKS, gradients_of_what_is_kept, "the gradient of W"),
]


def _trajectory(spec: str, fault: Fault | None) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return trajectory.run(CASE.picking(recipe=spec), steps=8).failure()


def _trajectories(cases: list[tuple[str, Fault | None]]) -> list[str | None]:
    return [_trajectory(*case) for case in cases]


def test_each_step_is_held_to_what_the_recipe_says(cpu_ranks: Ranks) -> None:
    found, beside = cpu_ranks.run(_trajectories, [(spec, fault) for spec, fault, _ in STEPS])
    assert found == beside
    for (spec, fault, says), why in zip(STEPS, found, strict=True):
        assert says in (why or ""), (spec, fault.__name__, why)
    right: list[tuple[str, Fault | None]] = [(spec, None) for spec in dict.fromkeys(spec for spec, *_ in STEPS)]
    for why in cpu_ranks.run(_trajectories, right)[0]:
        assert why is None or why.startswith("nothing was learned"), why  # eight steps are few


def _one_pass(spec: str, fault: Fault | None) -> tuple[ErrorSums, ErrorSums]:
    case = CASE.picking(recipe=spec).frozen
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return correctness.run(case).errors, backward.check(case).errors["mse_zero"]


def zeros_of_another_mask(patch: pytest.MonkeyPatch) -> None:
    plain = RecipePacking.__init__

    def init(self: RecipePacking, w_NK: torch.Tensor, *others: object) -> None:
        plain(self, w_NK.roll(1, 0), *others)  # type: ignore[arg-type]

    patch.setattr(RecipePacking, "__init__", init)


def the_gradient_of_y_as_what_goes_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packing, "of_gradients", packing.of_values)


def test_both_passes_are_held_to_its_own_weights(cpu_ranks: Ranks) -> None:
    for spec in ("ste", "fst", "s_ste", BLOCKS, EIGHT):
        for fault in (None, zeros_of_another_mask):
            per_rank = cpu_ranks.run(_one_pass, spec, fault)
            for sums in zip(*per_rank, strict=True):
                failure = Accuracy.of(sum(sums, ErrorSums()), 1).failure()
                assert (failure is None) == (fault is None), (spec, failure)
    found = cpu_ranks.run(_one_pass, EIGHT, the_gradient_of_y_as_what_goes_forward)
    failures = [Accuracy.of(sum(sums, ErrorSums()), 1).failure() for sums in zip(*found, strict=True)]
    assert [failure is None for failure in failures] == [True, False]
