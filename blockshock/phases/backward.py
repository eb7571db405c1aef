"""Phase 2: backward with frozen weights. Is grad_X right, and how long do forward and backward take together?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from blockshock.matrices import TransposedWeights, generator
from blockshock.measure import ErrorSums, compare, timing
from blockshock.phases.builds import over_builds, protocol_of_ranks
from blockshock.phases.case import Built, Case, build, this_device
from blockshock.phases.correctness import same_as_rank_0, same_bits
from blockshock.phases.forward import TimingResult, described, samples_of
from blockshock.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of y (B, N) and a target: what phase 2 differentiates."""
LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("sum")
def sum_loss(y_BN: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
    return y_BN.sum()


@LOSSES.register("mse_zero")
def mse_zero_loss(y_BN: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
    return y_BN.square().mean()


@LOSSES.register("mse_target")
def mse_target_loss(y_BN: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(y_BN, target_BN)


@dataclass
class GradientResult:
    """What one rank found of grad_X.

    Attributes:
        errors: by loss, over this rank's share of the input features.
        roundings: of an element of grad_X to the dtype, by the method's arithmetic.
        same_on_ranks: this rank's gradients have the bits of rank 0's.
        same_again: a second layer, built and run from the same seed, gives the same bits.
        seconds: of forward and backward of all losses in the two runs, by the host clock, device synchronised.
        algorithm: kernel and algorithm that ran.
    """

    errors: dict[str, ErrorSums]
    roundings: int
    same_on_ranks: bool
    same_again: bool
    seconds: list[float]
    algorithm: str


def check(case: Case) -> GradientResult:
    """grad_X of each loss against float64; all ranks call it together.

    The reference is the product of W, or of the method's own W′, with the grad_y that the method's own output led to:
    what the output was, phase 0 has judged.
    """
    built = build(case, backward=True)
    gradients, first = _all_gradients(built, case.seed)
    transposed, method = TransposedWeights(built.reference()), built.method
    roundings, share = method.grad_roundings, (built.group.rank(), built.group.size())
    errors = {}
    for loss, (grad_x_BK, grad_y_BN) in gradients.items():
        met_BN = method.met(built.layer, grad_y_BN, back=True)
        errors[loss] = compare(grad_x_BK, met_BN, transposed, roundings, *share, method.sums)
    ours = torch.stack([grad_x_BK for grad_x_BK, _ in gradients.values()])
    same_on_ranks, algorithm = same_as_rank_0(ours, built.group), built.method.algorithm
    del built, method, transposed, gradients
    gradients, second = _all_gradients(build(case, backward=True), case.seed)
    again = torch.stack([grad_x_BK for grad_x_BK, _ in gradients.values()])
    return GradientResult(errors, roundings, same_on_ranks, same_bits(again, ours), [first, second], algorithm)


def _all_gradients(built: Built, seed: int) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """grad_X and grad_Y by loss, and the seconds that took."""
    return timing.host_seconds(
        lambda: {loss: _gradients(built, loss, seed) for loss in LOSSES.names()}, built.x_BK.device
    )


def _gradients(built: Built, loss: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """grad_X and grad_Y of a loss against a normal target."""
    x_BK = built.x_BK.detach().requires_grad_()
    y_BN = built.method(x_BK)
    y_BN.retain_grad()
    target_BN = torch.randn(y_BN.shape, device=x_BK.device, generator=generator(x_BK.device, seed, 6))
    LOSSES.get(loss)(y_BN, target_BN.to(y_BN.dtype)).backward()  # type: ignore[no-untyped-call]
    assert x_BK.grad is not None
    assert y_BN.grad is not None
    return x_BK.grad.contiguous(), y_BN.grad.contiguous()


def both_passes(case: Case, built: Built) -> timing.Call:
    """What this phase times: forward and backward, with a fixed gradient of the output."""
    x_BK = built.x_BK.detach().requires_grad_()
    stream = generator(x_BK.device, case.seed, 7)
    grad_y_BN = torch.randn(case.B, case.N, device=x_BK.device, generator=stream).to(case.torch_dtype)
    return lambda: torch.autograd.grad(built.method(x_BK), x_BK, grad_y_BN)[0]


def run(case: Case, mode: str, rounds: int, warmup: int, flush: bool) -> TimingResult:
    """Build and time forward and backward together, and forward by itself; all ranks call it together."""
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)

    def describe(built: Built, share: timing.Protocol) -> TimingResult:
        x_BK = built.x_BK.detach().requires_grad_()
        both = both_passes(case, built)
        return described(case, built, both, share, lambda: {"forward": lambda: built.method(x_BK)}, backward=True)

    make = partial(build, case, backward=True, layer=case.layer(this_device(), backward=True))
    return over_builds(make, protocol, describe, samples_of(case, both_passes))
