"""Planted faults: each is built into a real two-rank run, and phase 0 must catch it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from refusing import refusals
from reliability import Record

from blockshock.kernels.reference import PackedReference
from blockshock.machine import Part
from blockshock.machine.combines.nccl import Nccl
from blockshock.matrices.masks import Mask, TiledMask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.methods import superposition
from blockshock.methods.superposition import BlockShock
from blockshock.phases import case as case_module
from blockshock.phases import correctness
from blockshock.phases.case import Case
from blockshock.phases.correctness import CorrectnessResult
from blockshock.ranks import Ranks

pytestmark = pytest.mark.correctness
CASE = Case("block_shock", {"kernel": "reference", "mask": "random"}, "gaussian", 128, 256, 8, "bf16")


def _wrong_position(patch: pytest.MonkeyPatch) -> None:
    """One kept value of one half sits in the wrong column."""
    build = PackedReference.__init__

    def faulty(self: PackedReference, half: Piece, bias: torch.Tensor | None) -> None:
        build(self, half, bias)
        first = int(self.weight.positions[5, 3]) & 15
        self.weight.positions[5, 3] += (14 if first != 14 else 4) - first

    patch.setattr(PackedReference, "__init__", faulty)


def _overlapping_halves(patch: pytest.MonkeyPatch) -> None:
    """Both ranks hold the first half; the check of the masks is blinded, the numbers must tell."""
    patch.setattr(Mask, "complement", lambda self: self)
    patch.setattr(TiledMask, "complement", lambda self: self)
    patch.setattr(superposition, "check_complementary", lambda *_: None)


def _skipped_all_reduce(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Nccl, "sum", lambda self, part: part.all())


def _reduced_on_one_rank_only(patch: pytest.MonkeyPatch) -> None:
    add_up = Nccl.sum

    def faulty(self: Nccl, part: Part) -> torch.Tensor:
        part_BN = part.all()
        y_BN = add_up(self, Part.of(part_BN.clone()))
        return y_BN if torch.distributed.get_rank() == 0 else part_BN

    patch.setattr(Nccl, "sum", faulty)


def _different_again(patch: pytest.MonkeyPatch) -> None:
    """Every pass flips the last bit of one output."""
    add_up, calls = Nccl.sum, iter(range(1000))

    def faulty(self: Nccl, part: Part) -> torch.Tensor:
        y_BN = add_up(self, part)
        y_BN.view(torch.int16)[0, 0] ^= next(calls) % 2
        return y_BN

    patch.setattr(Nccl, "sum", faulty)


def _stale_refresh(patch: pytest.MonkeyPatch) -> None:
    """New weights reach all halves but rank 1's."""
    write = PackedReference.write

    def faulty(self: PackedReference, values_NJ: torch.Tensor) -> None:
        if torch.distributed.get_rank() == 0:
            write(self, values_NJ)

    patch.setattr(PackedReference, "write", faulty)


def _run_with(fault: Callable[[pytest.MonkeyPatch], None] | None, case: Case) -> CorrectnessResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return correctness.run(case)


def _run_refreshed(fault: Callable[[pytest.MonkeyPatch], None] | None, case: Case) -> ErrorSums:
    """Errors of a layer built from one seed and refreshed to the weights of another."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if fault is not None:
            fault(patch)
        built = case_module.build(case)
        assert isinstance(built.method, BlockShock)
        new = GeneratedWeights(case.N, case.K, case.torch_dtype, built.x_BK.device, seed=case.seed + 1)
        halves = built.method.pieces(replace(built.layer, source=new))
        for half, packed in zip(halves, built.method.packings(), strict=True):
            packed.write(packed.kept_of(half.dense()))
        y_BN = built.method(built.x_BK)
        return correctness.compare(y_BN, built.x_BK, new, 2, built.group.rank(), built.group.size())


def _accuracy(errors: list[ErrorSums]) -> Accuracy:
    return Accuracy.of(sum(errors, ErrorSums()), roundings=2)


def test_without_a_fault_it_passes(cpu_ranks: Ranks) -> None:
    results = cpu_ranks.run(_run_with, None, CASE)
    assert _accuracy([result.errors for result in results]).failure() is None
    assert all(result.same_on_ranks and result.same_again for result in results)
    assert _accuracy(cpu_ranks.run(_run_refreshed, None, CASE)).failure() is None


@pytest.mark.parametrize("fault", [_wrong_position, _overlapping_halves, _skipped_all_reduce])
def test_a_wrong_result_is_caught(fault: Callable[[pytest.MonkeyPatch], None], cpu_ranks: Ranks) -> None:
    results = cpu_ranks.run(_run_with, fault, CASE.picking(mask="1100"))
    assert _accuracy([result.errors for result in results]).failure() is not None


@pytest.mark.reliability
@pytest.mark.parametrize("fault", [_skipped_all_reduce, _reduced_on_one_rank_only])
def test_ranks_that_disagree_are_caught(
    fault: Callable[[pytest.MonkeyPatch], None], cpu_ranks: Ranks, injected: Record
) -> None:
    assert not all(result.same_on_ranks for result in cpu_ranks.run(_run_with, fault, CASE))
    injected("a wrong result on one rank")


def test_two_runs_that_disagree_are_caught(cpu_ranks: Ranks) -> None:
    assert not any(result.same_again for result in cpu_ranks.run(_run_with, _different_again, CASE))


def test_a_stale_refresh_is_caught(cpu_ranks: Ranks) -> None:
    assert _accuracy(cpu_ranks.run(_run_refreshed, _stale_refresh, CASE)).failure() is not None


def _build_overlapping(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiledMask, "complement", lambda self: self)
        case_module.build(case)


def test_overlapping_halves_are_refused_before_anything_is_built(cpu_ranks: Ranks) -> None:
    for said in refusals(cpu_ranks, _build_overlapping, CASE.picking(mask="1100")):
        assert said.startswith("MaskError: halves overlap: both keep row 0, group 0")
