"""A weight that is trained by a recipe: all of W is the parameter, S(W) multiplies, and masks come and go.

What changes with time is here, and all of it is in ``state()``: how many steps were made, the mask in force, the scale,
and how many draws. A step that a GradScaler skips changes nothing of it, of a fused optimizer too. One that is
captured in a CUDA graph is none yet: ``advance`` counts each that is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from blockshock.errors import InputError
from blockshock.machine import is_capturing
from blockshock.matrices import product
from blockshock.stages import stage
from blockshock.training.parameters import Training
from blockshock.training.recipes.base import Recipe, spec_of
from blockshock.training.recipes.estimators import sampled_grad_weight, stream
from blockshock.training.recipes.in_force import InForce, OfRecipe, OfSoft, drop_, in_force
from blockshock.training.recipes.packing import RecipePacking
from blockshock.training.recipes.saved_state import COUNTS, MASK, SCALE, SCORES, faults_of_state, state_of
from blockshock.training.recipes.schedule import Kind, has_switched, kind_of, skips
from blockshock.training.recipes.scored import handing_on
from blockshock.training.sparse import masked_decay_
from blockshock.training.steps import prepare
from blockshock.training.storages import Storage


class RecipeStorage(Storage):
    """W (N, K) as a dense parameter, trained by a recipe.

    Attributes:
        recipe: by which.
        every: steps from one mask to the next; 0 for no other one.
        steps, draws: optimizer steps and sampled gradients so far.
        scores: what is trained beside W, and decides the mask; None where |w| does.
    """

    packed: RecipePacking
    scores: nn.Parameter | None

    def __init__(
        self,
        w_NK: torch.Tensor,
        bias: torch.Tensor | None,
        recipe: Recipe,
        training: Training,
        trained_bias: nn.Parameter | None,
    ) -> None:
        parameter = nn.Parameter(w_NK.to(training.parameter_dtype(w_NK.dtype)))
        mask_NK = recipe.mask(w_NK) if recipe.size else None
        super().__init__(parameter, RecipePacking(w_NK, bias, recipe, mask_NK), trained_bias)
        self.recipe, self.every, scores = recipe, recipe.every, recipe.scores(parameter)
        self.register_parameter("scores", None if scores is None else nn.Parameter(scores))
        self.packed.make_of(parameter)
        self._in_force: InForce | None = None
        self._by: Optimizer | None = None
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """The schedule from its first step on, with the mask and the scale of W as it is."""
        self.steps, self.draws, self.switched, self.scale = 0, 0, False, None
        if self.recipe.prunes:
            with stage("sparsify"):
                if self.scores is not None:
                    self.scores.copy_(self.recipe.scores(self.parameter))  # type: ignore[arg-type]
                self._in_force = in_force(self.packed.soft, self._mask_due, self.recipe)
                self.scale = self.recipe.scale(self.parameter)
            if not self.recipe.keeps_dropped and self.is_sparse:
                self._drop_(self.parameter)
        self.refresh()

    @property
    def mask_NK(self) -> torch.Tensor | None:
        """What S(W) keeps, boolean; None of a recipe that prunes nothing."""
        return None if self._in_force is None else self._in_force.mask_NK

    @property
    def flipped(self) -> torch.Tensor:
        """As of ``InForce``."""
        return torch.zeros((), device=self.parameter.device) if self._in_force is None else self._in_force.flipped

    def _mask_due(self) -> torch.Tensor:
        """The mask of W as it is, as it is held, or the blocks that its scores keep."""
        found = self.recipe.mask_bits if self.packed.by_bits else self.recipe.mask
        return found(self.parameter) if self.scores is None else self.recipe.of_scores(self.scores)

    @property
    def is_sparse(self) -> bool:
        """Whether S(W) multiplies now."""
        return self.recipe.is_sparse(self.steps, self.switched)

    def skip_to_sparse(self) -> None:
        """Be where S(W) multiplies, for who measures that."""
        self.steps = self.recipe.first_sparse()
        self.refresh()

    def tensors(self) -> list[torch.Tensor]:
        return [*super().tensors(), *([] if self._in_force is None else [self._in_force.held])]

    def _follow(self) -> None:
        super()._follow()
        prepare(self.parameter, self.before_step)

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """What the recipe adds to the gradient, as the optimizer is to meet it: after it was clipped.

        Raises:
            InputError: the step makes its gradients itself, by a closure.
        """
        self._by, grad = optimizer, self.parameter.grad
        if not self.recipe.decay or not self.is_sparse:
            return
        if has_closure:
            raise InputError(
                f"the recipe {spec_of(self.recipe)} adds to gradients right before a step, and a closure makes them "
                "within it: call backward() first, and step() without a closure"
            )
        if grad is None or skips(optimizer):
            return
        # What a fused optimizer is given by a scaler is still multiplied by its scale.
        scale = getattr(optimizer, "grad_scale", None)
        decay = self.recipe.decay * (1.0 if scale is None else float(scale))
        with stage("decay"):
            masked_decay_(grad, self.parameter, self._in_force.held, decay)  # type: ignore[union-attr]  # of what decays

    @torch.no_grad()
    def after_step(self, held: Sequence[torch.Tensor]) -> None:
        by, self._by = self._by, None
        if by is None or skips(by):  # of an optimizer of the bias alone it was not told
            super().after_step(held)
            return
        counted = self.steps, self.switched
        self._end_step(by, self.kind(by))
        if is_capturing(self.parameter.device):
            self.steps, self.switched = counted

    def kind(self, by: Optimizer | None = None) -> Kind:
        """Of the step that comes, as far as that is known; or of one that an optimizer has made."""
        return kind_of(self.recipe, self.every, self.steps, self.switched, self.switched or has_switched(by))

    @torch.no_grad()
    def advance(self, by: Optimizer) -> None:
        """Count a step that a CUDA graph has replayed; if what was seen in it makes it another kind, end it as that."""
        if (kind := self.kind(by)) != self.kind():
            self._end_step(by, kind)
            return
        self._count(by)
        self.packed.is_sparse = kind.after

    def _count(self, by: Optimizer) -> None:
        self.steps, self.switched = self.steps + 1, self.switched or has_switched(by)

    def _end_step(self, by: Optimizer, kind: Kind) -> None:
        self._count(by)
        if kind.takes_mask:
            self._take_mask()
        if kind.after and not self.recipe.keeps_dropped and self.recipe.first_sparse():
            with stage("sparsify"):  # an optimizer goes on moving by what it remembers of dense steps
                self._drop_(self.parameter)
        super().refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        if self.scores is not None and self._in_force is not None:
            self._in_force.held.copy_(self._mask_due())
        super().refresh()
        if isinstance(self._in_force, OfSoft):
            self._in_force.no_flips()

    def _take_mask(self) -> None:
        if isinstance(self._in_force, OfRecipe):  # others come with the weights
            with stage("sparsify"):
                self._in_force.take(self._mask_due())

    def pack(self) -> None:
        self._write(self.packed)

    def _write(self, packed: Any) -> None:
        held = None if self._in_force is None else self._in_force.held
        packed.put(self.parameter.detach(), self.is_sparse, held, self.scale)

    def grad_weight(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        dtype = self.parameter.dtype
        if self.scores is not None and not self.parameter.requires_grad:
            with stage("grad_w"):
                return self.recipe.grad_scores_alone(grad_y_BN, x_BK, self.scores.dtype)
        if self.recipe.samples and self.is_sparse:
            draws = stream(x_BK.device, self.recipe.seed, self.draws)
            if draws is not None:
                self.draws += 1
            return sampled_grad_weight(grad_y_BN, x_BK, draws, dtype, self.recipe.bits)
        with stage("grad_w"):
            grad_NK = product(grad_y_BN.T, x_BK, dtype)
            return grad_NK if self.recipe.keeps_dropped or not self.is_sparse else self._drop_(grad_NK)

    def differentiated(self) -> torch.Tensor:
        return self.parameter if self.scores is None else handing_on(self.parameter, self.scores, self.recipe)

    def difference(self) -> str | None:
        scored = self.scores is not None and not self.is_stale
        if scored and self._in_force is not None and not torch.equal(self._in_force.held, self._mask_due()):
            return "the mask is not that of its scores"
        return super().difference()

    def _drop_(self, x_NK: torch.Tensor) -> torch.Tensor:
        return drop_(x_NK, self._in_force)  # type: ignore[arg-type]  # where there is one

    @torch.no_grad()
    def load(self, w_NK: torch.Tensor) -> None:
        """Take over a dense W and begin anew."""
        self.parameter.copy_(w_NK)
        self.begin()

    def state(self) -> dict[str, torch.Tensor]:
        """All but the weights that a run needs to go on with the same bits; loads with ``weights_only=True``."""
        held = {MASK: self.mask_NK if self.scores is None else None, SCALE: self.scale, SCORES: self.scores}
        return state_of(self.recipe, (self.steps, self.draws, int(self.switched)), held)

    def faults(self, found: Mapping[str, torch.Tensor]) -> str | None:
        """Why a state cannot be gone on from; None if it can."""
        return faults_of_state(found, self.state(), self.recipe)

    @torch.no_grad()
    def resume(self, found: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state, of W as it is."""
        self.steps, self.draws, switched = map(int, found[COUNTS].tolist())
        self.switched = bool(switched)
        if self.scores is not None:
            self.scores.copy_(found[SCORES])  # of which the mask is
        elif isinstance(self._in_force, OfRecipe):
            self._in_force.put(found[MASK])
        if self.scale is not None:
            self.scale.copy_(found[SCALE])
        self.refresh()

    def _check_shard(self, held: torch.Tensor, shard: Any) -> None:
        raise InputError(
            "fully_shard would take the parameter of a recipe apart, and masks are of whole weights: give fully_shard "
            "other modules, or train on replicas by DistributedDataParallel"
        )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_by": None}
