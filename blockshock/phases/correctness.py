"""Phase 0: is the output right? Against float64, between ranks, and between two runs with one seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from blockshock.machine import Group, of_rank_0
from blockshock.matrices import WeightSource, bits
from blockshock.measure import ErrorSums, Losing, QualitySums, compare, lost, timing
from blockshock.methods import Promise, method_of
from blockshock.phases.case import Built, Case, build, this_device


@dataclass
class CorrectnessResult:
    """What one rank found.

    Attributes:
        errors: over this rank's share of the output features.
        roundings: of an output element to the dtype, by the method's arithmetic.
        same_on_ranks: this rank's output has the bits of rank 0's.
        same_again: a second layer, built and run from the same seed, gives the same bits.
        called_again: what is wrong with further calls of the first layer; None where nothing is.
        seconds: of the two forward passes, by the host clock, device synchronised.
        algorithm: kernel and algorithm that ran.
        lost: what its weights lose against W, where it promises to be right for weights of its own.
        lost_by_half: what the first of its two halves loses by itself, where it has two.
    """

    errors: ErrorSums
    roundings: int
    same_on_ranks: bool
    same_again: bool
    seconds: list[float]
    algorithm: str
    called_again: str | None = None
    lost: QualitySums | None = None
    lost_by_half: QualitySums | None = None


@torch.inference_mode()
def run(case: Case) -> CorrectnessResult:
    """Build, run and check the case on this rank; all ranks call it together."""
    built = build(case)
    y_BN, first = _forward(built)
    roundings, algorithm = built.method.roundings, built.method.algorithm
    errors, *sums = _compared(built, y_BN, roundings)
    same_on_ranks, called_again = same_as_rank_0(y_BN, built.group), _called_again(built, y_BN)
    del built
    again_BN, second = _forward(build(case))
    same_again = same_bits(again_BN, y_BN)
    return CorrectnessResult(
        errors, roundings, same_on_ranks, same_again, [first, second], algorithm, called_again, *sums
    )


@torch.inference_mode()
def lost_by(case: Case) -> QualitySums:
    """What the weights of a case lose against W, of this rank's share of the output features. Nothing is packed."""
    device = this_device()
    layer, x_BK, ranks = case.layer(device), case.inputs(device), dist.get_world_size()
    kind = method_of(case.method)[0]
    return lost(x_BK, layer.source, kind.multiplied(layer, ranks), dist.get_rank(), ranks, kind.met(layer, x_BK, ranks))


def _compared(
    built: Built, y_BN: torch.Tensor, roundings: int
) -> tuple[ErrorSums, QualitySums | None, QualitySums | None]:
    """Errors against what the method promises to be right for, what that loses against W, and a half of it."""
    reference, share = built.reference(), (built.group.rank(), built.group.size())

    met_BK = built.met_BK()

    def loses(weights: WeightSource | None) -> Losing | None:
        return None if weights is None else Losing(built.x_BK, built.source, weights, met_BK)

    own = reference if built.method.promised(built.layer.picks) is Promise.OWN_WEIGHTS else None
    of_own, of_half = loses(own), loses(built.method.first_half(built.layer))
    beside = [losing for losing in (of_own, of_half) if losing is not None]
    errors = compare(y_BN, met_BK, reference, roundings, *share, built.method.sums, beside)
    return errors, of_own.sums() if of_own else None, of_half.sums() if of_half else None


def _called_again(built: Built, y_BN: torch.Tensor) -> str | None:
    """What is wrong with further calls: of half of x, whose product is half but for the bias, and of x once more."""
    x_BK, bias, limits = built.x_BK, built.source.bias, torch.finfo(y_BN.dtype)
    half_BN, again_BN = built.method(x_BK / 2), built.method(x_BK)
    if not same_bits(again_BN, y_BN):
        return "called again with the same x, a layer gives other bits"
    added = torch.zeros(1, device=y_BN.device) if bias is None else bias.float()
    y32_BN, half32_BN = y_BN.float(), half_BN.float()
    off_BN = half32_BN - (y32_BN - added) / 2 - added
    # Of a power of two all but the bias's rounding is the same; near zero numbers are cut off.
    allowed = 8 * built.method.roundings * limits.eps * (y32_BN.norm() + added.norm() * len(y_BN) ** 0.5)
    allowed += limits.smallest_normal * (y_BN.numel() * x_BK.shape[1]) ** 0.5
    if not bool(off_BN.norm() <= allowed):
        return "called again with half of x, a layer does not give half of y"
    return None


def _forward(built: Built) -> tuple[torch.Tensor, float]:
    """Raises ValueError where what a method gives is no (B, N)."""
    found, seconds = timing.host_seconds(lambda: built.method(built.x_BK), built.x_BK.device)
    if not isinstance(found, torch.Tensor) or found.shape != (len(built.x_BK), built.source.N):
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"y must be a tensor {(len(built.x_BK), built.source.N)}, and the method gives {got}")
    return found, seconds


def same_as_rank_0(tensor: torch.Tensor, group: Group) -> bool:
    """Whether this rank has the bits that rank 0 has."""
    first = of_rank_0(tensor, group)
    assert first is not None
    return same_bits(first, tensor)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, whatever their strides."""
    return torch.equal(bits(a.contiguous()), bits(b.contiguous()))
