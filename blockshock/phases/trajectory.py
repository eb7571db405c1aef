"""Phase 3: is training dense-equivalent? Fifty steps beside dense runs that differ only in the order of summation.

A layer learns a teacher's outputs by a mean squared error, over batches that come around, with a learning rate that
warms up and decays and with gradients clipped by their global norm. The plain dense run is the trajectory. How far
may another be from it? As far as dense runs that take the products over K and B in another order, over K in as many
pieces as the method adds partial sums, and that add the bias before or after a product is rounded: twice the largest of
their distances up to that step, the factor that the accuracy of single products has too (measure/accuracy.py). Where
roundings differ in a few outputs or in none, the distance after one step is a matter of chance, and right runs may well
be farther than twice that of two others: each of the first ten steps is held to the largest distance of the ten.
A loss is a single number, of more chance than the norm of a matrix, and may be three times as far.

A method that promises to be right for its own W′ is held to dense runs that train W′ under its mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.machine import slowest_of_ranks
from blockshock.matrices import product
from blockshock.methods import Method, Promise, method_of
from blockshock.phases.case import Case, build
from blockshock.phases.learning import LearningResult
from blockshock.phases.learning import run as learning
from blockshock.phases.lesson import Lesson, prepare
from blockshock.training import Training, clip_grad_norm_, optimizer_of

ORDERS = 3
WEIGHT_ALLOWED, LOSS_ALLOWED = 2.0, 3.0
FIRST = 10


@dataclass(frozen=True)
class Trajectory:
    """What one run went through: of each step the loss before it, and W after it on this device."""

    losses: list[float]
    weights: list[torch.Tensor]


@dataclass
class TrajectoryResult:
    """Distances from the dense trajectory, by step.

    Attributes:
        weight_distance, weight_limit: relative Frobenius distance of W, and what passes.
        loss_distance, loss_limit: of the loss, relative to the first one.
        losses: of the run itself.
    """

    weight_distance: list[float]
    weight_limit: list[float]
    loss_distance: list[float]
    loss_limit: list[float]
    losses: list[float]

    def failure(self) -> str | None:
        """None if the run follows the dense trajectory and learns, else a sentence that says where it does not."""
        for what, distance, limit in (
            ("W", self.weight_distance, self.weight_limit),
            ("the loss", self.loss_distance, self.loss_limit),
        ):
            for step, (found, passes) in enumerate(zip(distance, limit, strict=True)):
                if not found <= passes:  # so that NaN fails
                    return f"step {step}: {what} is {found:.3g} from the dense trajectory, at most {passes:.3g} passes"
        if not self.losses[-1] < 0.9 * self.losses[0]:
            return f"nothing was learned: the loss went from {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        return None


def run(case: Case, steps: int = 50) -> TrajectoryResult | LearningResult:
    """Train the case's method and the dense runs on this rank; all ranks call it together."""
    built = build(case)
    if built.method.promise is Promise.LEARNS:
        return learning(case, built, prepare(case.of("dense_single"), steps, False))
    rounds = built.method.rounds_weight_gradients
    dense = _dense(case)
    ours = _train_method(case, built.method, prepare(case.of("dense_single"), steps, rounds))
    plain = _plain_run(dense, steps, rounds)
    ranks = built.group.rank(), built.group.size()
    limits = _limits(dense, steps, rounds, built.method.roundings, *ranks)
    limits = slowest_of_ranks(limits, built.x_BK.device, built.group)  # the largest, of the orders that each has run
    return TrajectoryResult(
        weight_distance=_weight_distances(ours, plain),
        weight_limit=limits[:steps],
        loss_distance=_loss_distances(ours, plain),
        loss_limit=limits[steps:],
        losses=ours.losses,
    )


def _dense(case: Case) -> Case:
    """What the dense runs go by: a case of W, or of the W′ that the method promises to be right for."""
    own = method_of(case.method)[0].promise is not Promise.DENSE
    return case.picking(kernel=None, storage=None) if own else case.of("dense_single")


def _train(
    case: Case,
    lesson: Lesson,
    parameters: list[nn.Parameter],
    learn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    weight: Callable[[], torch.Tensor],
) -> Trajectory:
    """Go through a lesson.

    Args:
        learn: gives the parameters their gradients of a batch (x, target); returns the loss.
        weight: a copy of W as it is.
    """
    optimizer = replace(optimizer_of(case.optimizer or "sgd"), lr=lesson.lr).build(parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lesson.rate)
    losses, weights = [], []
    for step in range(lesson.steps):
        optimizer.zero_grad()
        loss = learn(*lesson.batch(step))
        clip_grad_norm_(parameters, lesson.max_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        weights.append(weight())
    return Trajectory(losses, weights)


def _train_method(case: Case, method: Method, lesson: Lesson) -> Trajectory:
    def learn(x_BK: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
        loss = F.mse_loss(method(x_BK).float(), target_BN)
        loss.backward()
        return loss

    return _train(case, lesson, list(method.parameters()), learn, method.whole_weight)


# All methods are compared with the same dense runs, one lesson after the other.
@lru_cache(maxsize=1)
def _plain_run(case: Case, steps: int, rounds_gradients: bool) -> Trajectory:
    """The plain dense run: the trajectory."""
    lesson = prepare(case.of("dense_single"), steps, rounds_gradients)
    return _train_dense(case, lesson, torch.arange(case.K), torch.arange(case.B), 1, bias_after=False)


@lru_cache(maxsize=4)
def _limits(case: Case, steps: int, rounds_gradients: bool, pieces: int, rank: int, ranks: int) -> list[float]:
    """How far W, and then the loss, may be from the plain dense run at each step, by this rank's share of dense runs in
    other orders.

    Losses may always differ by as much as float32 roundings of one number: a bit of the last place each.
    """
    lesson = prepare(case.of("dense_single"), steps, rounds_gradients)
    plain = _plain_run(case, steps, rounds_gradients)
    stream = torch.Generator().manual_seed(case.seed)
    last_bit = torch.finfo(torch.float32).eps
    weight_limit, loss_limit = [0.0] * steps, [LOSS_ALLOWED * last_bit] * steps
    for order in range(ORDERS):
        columns, rows = (torch.randperm(size, generator=stream) for size in (case.K, case.B))
        if order % ranks != rank:
            continue
        other = _train_dense(case, lesson, columns, rows, pieces, bias_after=bool(order % 2))
        weight_limit = _raised(weight_limit, _weight_distances(other, plain), WEIGHT_ALLOWED)
        loss_limit = _raised(loss_limit, _loss_distances(other, plain), LOSS_ALLOWED)
    return weight_limit + loss_limit


def _raised(limit: list[float], distances: list[float], allowed: float) -> list[float]:
    """The limit, raised to so many times the largest distance up to each step, or of the first ones."""
    largest = accumulate([max(distances[:FIRST]), *distances[1:]], max)
    return [max(least, allowed * most) for least, most in zip(limit, largest, strict=True)]


def _train_dense(
    case: Case, lesson: Lesson, columns: torch.Tensor, rows: torch.Tensor, pieces: int, bias_after: bool
) -> Trajectory:
    """A dense layer trained with its sums over K, in so many pieces, and over B in the given orders.

    Of W′ what is dropped gets no gradient: "prune once, then retrain" (Mishra et al., arXiv 2104.08378, 2021).

    Args:
        bias_after: it is added to a product that was rounded, not within it.
    """
    device, dtype = lesson.x.device, case.torch_dtype
    source = case.reference(device)
    dropped_NK = None if source.mask is None else ~source.mask.dense()
    parameter_dtype = Training().parameter_dtype(dtype)
    w_NK = nn.Parameter(source.gather(slice(None)).to(parameter_dtype))
    bias = None if source.bias is None else nn.Parameter(source.bias.to(parameter_dtype))
    parameters = [w_NK] if bias is None else [w_NK, bias]
    columns, rows = columns.to(device), rows.to(device)

    def learn(x_BK: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            added = None if bias is None else bias.to(dtype)
            within = [None if bias_after else added, *[None] * (pieces - 1)]
            first, *rest = [
                F.linear(x_BK[:, c], w_NK[:, c].to(dtype), b)
                for c, b in zip(columns.chunk(pieces), within, strict=True)
            ]
            y_BN = sum(rest, first + added if bias_after and added is not None else first).requires_grad_()
        loss = F.mse_loss(y_BN.float(), target_BN)
        (grad_y_BN,) = torch.autograd.grad(loss, y_BN)
        w_NK.grad = product(grad_y_BN[rows].T, x_BK[rows], lesson.gradient_dtype).to(parameter_dtype)
        if dropped_NK is not None:
            w_NK.grad.masked_fill_(dropped_NK, 0)
        if bias is not None:
            bias.grad = grad_y_BN[rows].sum(0, dtype=parameter_dtype)
        return loss

    return _train(case, lesson, parameters, learn, lambda: w_NK.detach().clone())


def _weight_distances(run: Trajectory, plain: Trajectory) -> list[float]:
    return [
        ((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(run.weights, plain.weights, strict=True)
    ]


def _loss_distances(run: Trajectory, plain: Trajectory) -> list[float]:
    return [abs(ours - theirs) / plain.losses[0] for ours, theirs in zip(run.losses, plain.losses, strict=True)]
