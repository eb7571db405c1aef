"""Is a block with 2:4 activations what its recipe says? Some steps of training, each beside its definition in float64.

What is right is so for the activations that the block itself keeps: they are seen by another block that has its W₁ and
the identity for W₂. They must be 2:4, and what the recipe would keep, of z as the dense product rounds it. From there
float64 makes the output and all gradients; the block may be twice as far from those as dense products of the same
operands are. Evaluation must be what the recipe says of it, and the loss must fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.matrices import generator, transposable_tiles
from blockshock.nn.ffn import SparseFFN
from blockshock.phases.definition import distance, limit
from blockshock.phases.ffn import FFNCase, build
from blockshock.training import BlockRecipe, optimizer_of
from blockshock.training.recipes.activation import ACTS, Activation
from blockshock.training.recipes.blocks import MULTIPLE_OF_THIN
from blockshock.training.sparse import mask_24

STEPS, LR = 12, 3e-3
SUMMED = 1e-5
"""Of what a tile is worth, what the rounding of a sum may hide."""
NOTHING = 1e-6
"""Of the largest activation."""
NAMES = ("the output", "∇x", "∇W₁", "∇W₂")
Passes = tuple[torch.Tensor, ...]
"""The output, and the gradients of x, W₁ and W₂."""


@dataclass
class FFNCheck:
    """What each step was, beside what the recipe says.

    Attributes:
        loss_distance, loss_limit: relative Frobenius distance of the output, and what passes.
        weight_distance, weight_limit: of the gradient that is farthest off, for what passes of it.
        losses: before each step.
        mask_faults: of what is kept, of evaluation, and of the first gradient that is too far off.
    """

    loss_distance: list[float]
    loss_limit: list[float]
    weight_distance: list[float]
    weight_limit: list[float]
    losses: list[float]
    mask_faults: list[str]

    def failure(self) -> str | None:
        """None if each step was what the recipe says, and it learns, else a sentence that says where not."""
        if self.mask_faults:
            return self.mask_faults[0]
        if not self.losses[-1] < 0.9 * self.losses[0]:
            return f"nothing was learned: the loss went from {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        return None


def run(case: FFNCase) -> FFNCheck:
    """Train the block for some steps towards a linear map of its inputs."""
    model = build(case).model
    assert isinstance(model, SparseFFN)
    device, dtype, recipe = model.fc1.weight.device, case.torch_dtype, model.recipe
    stream = generator(device, case.seed, 12)
    teacher_DD = torch.randn(case.K, case.K, device=device, generator=stream) * case.K**-0.5
    x_BD = torch.randn(case.B, case.K, device=device, generator=stream).to(dtype).requires_grad_()
    target_BD = x_BD.detach().float() @ teacher_DD
    optimizer = replace(optimizer_of("adamw"), lr=LR).build(model.parameters())
    found = FFNCheck([], [], [], [], [], [])
    for step in range(STEPS):
        torch.manual_seed(case.seed + step)
        a_BH = _kept(model, case, x_BD)
        faults = [_fault_of_mask(recipe, a_BH, F.linear(x_BD, model.fc1.weight).detach())]
        faults += [_fault_of_evaluation(model, x_BD, a_BH)] if step == 0 else []
        torch.manual_seed(case.seed + step)  # the same draws again
        y_BD = model(x_BD)
        loss = F.mse_loss(y_BD.float(), target_BD)
        (grad_y_BD,) = torch.autograd.grad(loss, y_BD, retain_graph=True)
        weights = (model.fc1.weight, model.fc2.weight)
        ours = (y_BD, *torch.autograd.grad(y_BD, (x_BD, *weights), grad_y_BD))
        for weight, grad in zip(weights, ours[2:], strict=True):
            weight.grad = grad
        faults += _compare(found, ours, recipe, (x_BD, *weights, grad_y_BD), a_BH)
        optimizer.step()
        found.losses.append(loss.item())
        found.mask_faults += [f"step {step}: {fault}" for fault in faults if fault]
    return found


@torch.no_grad()
def _kept(model: SparseFFN, case: FFNCase, x_BD: torch.Tensor) -> torch.Tensor:
    """The activations (B, H) that go on to W₂ in training, exactly: what another block makes of x whose W₂ is the
    identity."""
    hidden, weight = model.fc1.out_features, model.fc1.weight
    seen = nn.Linear(hidden, hidden, bias=False, device="meta")
    seen.weight = nn.Parameter(torch.eye(hidden, dtype=weight.dtype, device=weight.device))
    assert case.recipe is not None
    a_BH: torch.Tensor = SparseFFN.of(model.fc1, seen, case.recipe)(x_BD)
    return a_BH


def _fault_of_mask(recipe: BlockRecipe, a_BH: torch.Tensor, z_BH: torch.Tensor) -> str | None:
    """What is wrong with what is kept: of each tile, or each four of a row, it is to be what one of the patterns there
    are would keep, and no other may be worth more, but for the rounding of an activation."""
    patterns = transposable_tiles(z_BH.device) if recipe.both_ways else _pairs(z_BH.device)
    size = patterns.shape[1:]
    acted_BH = recipe.factor * ACTS[_act(recipe)](z_BH)
    # What is next to nothing, as gelu of −6, is zero by one way to compute it and not by another: it tells nothing.
    wanted, kept = (_tiled(values, size) for values in (acted_BH.abs() > NOTHING * acted_BH.abs().max(), a_BH != 0))
    fits = ((patterns.flatten(1) & wanted[:, None]) == (kept & wanted)[:, None]).all(-1)
    if not fits.any(-1).all():
        return "what it keeps is not 2:4, or not all of what it keeps"
    if not isinstance(recipe, Activation):
        return None
    worth_BH = z_BH if recipe.where == "pre" else acted_BH
    signed = recipe.where == "pre" and recipe.act != "gelu"
    worth = _tiled((worth_BH if signed else worth_BH.abs()).double(), size)
    sums = worth @ patterns.flatten(1).double().T
    best, ours = sums.amax(-1), sums.masked_fill(~fits, -torch.inf).amax(-1)
    rounded = torch.finfo(z_BH.dtype).eps if recipe.where == "post" else SUMMED
    return None if (ours >= best - rounded * worth.abs().sum(-1)).all() else "it keeps less than could be kept"


def _act(recipe: BlockRecipe) -> str:
    return str(getattr(recipe, "act"))  # noqa: B009


def _pairs(device: torch.device) -> torch.Tensor:
    """Which two of four, (6, 1, 4)."""
    pairs = torch.combinations(torch.arange(4, device=device))
    return F.one_hot(pairs, 4).sum(1, keepdim=True).bool()


def _tiled(values_BH: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Tiles of a size, a row each; rows that are missing are zeros."""
    high, wide = size
    filled_BH = F.pad(values_BH, (0, 0, 0, -len(values_BH) % high))
    return filled_BH.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2).flatten(2).flatten(0, 1)


def _fault_of_evaluation(model: SparseFFN, x_BD: torch.Tensor, a_BH: torch.Tensor) -> str | None:
    """Whether evaluation is other than training where it is to be the same, or not dense where it is to be that."""
    model.eval()
    with torch.no_grad():
        y_BD = model(x_BD)
    model.train()
    if not model.recipe.thins(False):
        a_BH = ACTS[_act(model.recipe)](F.linear(x_BD, model.fc1.weight)).detach()
    right_BD = a_BH.double() @ model.fc2.weight.detach().double().T
    plain = distance(F.linear(a_BH, model.fc2.weight), right_BD)
    return _too_far("the output in evaluation", distance(y_BD, right_BD), limit(plain, x_BD.dtype))


def _compare(
    found: FFNCheck, ours: Passes, recipe: BlockRecipe, operands: Passes, a_BH: torch.Tensor
) -> list[str | None]:
    """Add to what was found how far the output and each gradient are from their definition; what is too far."""
    chosen: list[torch.Tensor] = []
    plain = _passes(recipe, operands, a_BH, chosen)
    right = _passes(recipe, tuple(one.detach().double() for one in operands), a_BH, chosen)
    dtype = operands[0].dtype
    distances = [distance(one, exact) for one, exact in zip(ours, right, strict=True)]
    limits = [limit(distance(one, exact), dtype) for one, exact in zip(plain, right, strict=True)]
    worst = max(range(1, 4), key=lambda number: distances[number] / limits[number])
    found.loss_distance.append(distances[0])
    found.loss_limit.append(limits[0])
    found.weight_distance.append(distances[worst])
    found.weight_limit.append(limits[worst])
    return [_too_far(*one) for one in zip(NAMES, distances, limits, strict=True)]


def _too_far(name: str, found: float, passes: float) -> str | None:
    if found <= passes:
        return None  # so that NaN is too far
    return f"{name} is {found:.3g} from what the recipe says, at most {passes:.3g} passes"


def _passes(recipe: BlockRecipe, operands: Passes, a_BH: torch.Tensor, chosen: list[torch.Tensor]) -> Passes:
    """The output and all gradients by definition, in the dtype of the operands x, W₁, W₂ and ∇y.

    Args:
        a_BH: what is kept is not zero.
        chosen: of products over tokens that thin, what of the gradient of z is thinned: set by the first who comes.
    """
    x_BD, w_HD, w_DH, grad_y_BD = (one.detach().requires_grad_() for one in operands)
    kept_BH, act = a_BH != 0, ACTS[_act(recipe)]
    before = getattr(recipe, "where", "post") == "pre"

    def thin(values_BH: torch.Tensor) -> torch.Tensor:
        kept = values_BH.where(kept_BH, 0)
        return values_BH + (kept - values_BH).detach() if recipe.gradient == "ste" else kept

    z_BH = F.linear(x_BD, w_HD)
    acted_BH = act(thin(z_BH)) if before else thin(act(z_BH))
    thinned_BH = acted_BH if recipe.factor == 1 else recipe.factor * acted_BH
    y_BD = F.linear(thinned_BH, w_DH)
    wanted = (x_BD, w_HD, w_DH, z_BH)
    grad_x_BD, grad_w1, grad_w2, grad_z_BH = torch.autograd.grad(y_BD, wanted, grad_y_BD)
    if not recipe.both_ways:
        if not chosen:
            features = _thin_features(a_BH, recipe.dense)
            chosen += [_kept_over_tokens(values_BH, features) for values_BH in (a_BH, grad_z_BH)]
        grad_w2 = grad_y_BD.T @ thinned_BH.where(chosen[0], 0)
        if recipe.gradient == "sp24":
            grad_w1 = grad_z_BH.where(chosen[1], 0).T @ x_BD
    return y_BD, grad_x_BD, grad_w1, grad_w2


def _thin_features(a_BH: torch.Tensor, dense: float) -> torch.Tensor:
    """Those that products over tokens thin: with most zeros, as many as the recipe says, and what fills them up."""
    hidden = a_BH.shape[1]
    many = min(-(-math.ceil((1 - dense) * hidden) // MULTIPLE_OF_THIN) * MULTIPLE_OF_THIN, hidden)
    return (a_BH != 0).sum(0).argsort(stable=True)[:many]


def _kept_over_tokens(a_BH: torch.Tensor, thin: torch.Tensor) -> torch.Tensor:
    """What a product over tokens takes of an ``a``: of features that are thinned the two largest of each four tokens,
    and all of the others."""
    kept_BH = torch.ones_like(a_BH, dtype=torch.bool)
    filled_BH = F.pad(a_BH[:, thin], (0, 0, 0, -len(a_BH) % 4))
    kept_BH[:, thin] = mask_24(filled_BH, 0)[: len(a_BH)]
    return kept_BH
