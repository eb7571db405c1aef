"""Block-sparse layers: right for W′ in every pass, faults of each kind caught, and what W′ loses told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockshock.matrices.block_mask import BlockMask
from blockshock.matrices.pieces import MaskedWeights, Piece
from blockshock.matrices.weights import GeneratedWeights
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.measure.quality import QualitySums
from blockshock.methods import METHODS, Promise, Role, Span
from blockshock.methods.dense_single import Single
from blockshock.methods.layer import Layer
from blockshock.methods.w_prime_blocks import BlockSparse
from blockshock.phases import backward, correctness
from blockshock.phases.case import Case, build, obstacle
from blockshock.phases.correctness import CorrectnessResult
from blockshock.phases.train import Step
from blockshock.pruning import BLOCK_SCORES
from blockshock.ranks import Ranks
from blockshock.registry import parse_spec

pytestmark = pytest.mark.correctness
PICKS = {"block_kernel": "reference", "block_mask": "blocks:size=16:level=0.8"}
CASE = Case("block_sparse", PICKS, "gaussian", 128, 192, 8, "bf16")
RECORDED = replace(CASE, N=1536, K=384, workload="recorded")
Fault = Callable[[pytest.MonkeyPatch], None]


def _w_in_place_of_it(patch: pytest.MonkeyPatch) -> None:
    """Nothing was dropped."""
    patch.setattr(BlockSparse, "hold", Single.hold)
    patch.setattr(BlockSparse, "_kernel_name", "dense", raising=False)


def _other_blocks(patch: pytest.MonkeyPatch) -> None:
    """What is multiplied has other blocks than what is promised."""
    patch.setattr(
        BlockSparse,
        "reference",
        classmethod(
            lambda cls, layer, ranks: MaskedWeights(layer.source, BlockMask(layer.blocks.kept_RC.roll(1, 1), 16))
        ),
    )


def _one_kept_value_lost(patch: pytest.MonkeyPatch) -> None:
    hold = BlockSparse.hold

    def faulty(self: BlockSparse, *rest: object) -> object:
        weight = hold(self, *rest)  # type: ignore[arg-type]
        weight.values[3, 5] = 0  # type: ignore[union-attr]
        return weight

    patch.setattr(BlockSparse, "hold", faulty)


def _run(case: Case, fault: Fault | None = None) -> CorrectnessResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return correctness.run(case)


def _failure(results: list[CorrectnessResult]) -> str | None:
    return Accuracy.of(sum((result.errors for result in results), ErrorSums()), results[0].roundings).failure()


def test_what_they_are() -> None:
    kinds = [METHODS.get(name) for name in ("block_sparse", "block_sparse_dense")]
    assert {(kind.promise, kind.span) for kind in kinds} == {(Promise.OWN_WEIGHTS, Span.ONE)}
    assert [kind.role for kind in kinds] == [Role.SUBJECT, Role.ABLATION]


def _every() -> list[tuple[str, CorrectnessResult]]:
    specs = [f"blocks:size={size}:level=0.8" for size in (8, 16, 32, 64, 128)]
    specs += [f"blocks:by={score}" for score in BLOCK_SCORES.names()]
    specs += ["blocks:size=8:inside=1100", "blocks:level=0.0", "blocks_24:size=32"]
    cases = [
        RECORDED.picking(block_kernel=kernel, block_mask=spec) for spec in specs for kernel in ("reference", "dense")
    ]
    cases.append(RECORDED.of("block_sparse_dense", ("block_mask",)))
    return [(case.id, correctness.run(case)) for case in cases]


def test_every_one_is_right_for_its_own_w(cpu_ranks: Ranks) -> None:
    for row in zip(*cpu_ranks.run(_every), strict=True):
        results = [result for _, result in row]
        assert _failure(results) is None, row[0][0]
        assert all(result.same_again and result.same_on_ranks for result in results), row[0][0]
        sums = sum((result.lost for result in results if result.lost is not None), QualitySums())
        assert (sums.quality()["output_error"] == 0) == ("level=0.0" in row[0][0])


@pytest.mark.parametrize("fault", [_w_in_place_of_it, _other_blocks, _one_kept_value_lost])
def test_a_wrong_w_is_caught(fault: Fault, cpu_ranks: Ranks) -> None:
    assert _failure(cpu_ranks.run(_run, CASE)) is None
    assert _failure(cpu_ranks.run(_run, CASE, fault)) is not None


def _quality(level: float) -> dict[str, float]:
    found = correctness.lost_by(RECORDED.picking(block_mask=f"blocks:size=16:level={level}:by=score"))
    return found.quality()


def test_the_more_is_dropped_the_more_is_lost(cpu_ranks: Ranks) -> None:
    errors = [cpu_ranks.run(_quality, level)[0]["output_error"] for level in (0.5, 0.8, 0.9)]
    assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_gradients_of_x_are_right(cpu_ranks: Ranks) -> None:
    for case in (CASE, CASE.picking(block_mask="blocks:size=8:level=0.9:inside=1100")):
        results = cpu_ranks.run(backward.check, case)
        for loss in results[0].errors:
            errors = sum((result.errors[loss] for result in results), ErrorSums())
            assert Accuracy.of(errors, results[0].roundings).failure() is None, loss


def _trained() -> tuple[float, bool, bool, str | None]:
    """After a step of SGD: how far what multiplies is from a dense step under the mask; zeros stayed zeros."""
    case = replace(CASE, optimizer="sgd", dtype="fp32")
    built = build(case, backward=True)
    own = built.reference()
    assert own.mask is not None
    mask_NK, before_NK = own.mask.dense(), own.gather(slice(None))
    step = Step(case, built)
    step()
    after_NK, (storage,) = built.method.whole_weight(), built.method.storages()
    with torch.no_grad():
        y_BN = built.method(built.x_BK)
    right = (y_BN - built.x_BK @ after_NK.T).norm() / y_BN.norm()
    moved = not torch.equal(after_NK, before_NK)
    return right.item(), bool((after_NK[~mask_NK] == 0).all()), moved, storage.difference()


def test_it_is_trained_under_its_mask(cpu_ranks: Ranks) -> None:
    error, stayed, moved, difference = cpu_ranks.run(_trained)[0]
    assert (stayed, moved, difference) == (True, True, None)
    assert error < 1e-6


def _obstacles(cases: list[Case]) -> list[str | None]:
    return [obstacle(case) for case in cases]


def test_what_it_cannot_take_is_said_in_a_sentence(cpu_ranks: Ranks) -> None:
    narrow = replace(CASE, N=100)
    said, fits = cpu_ranks.run(_obstacles, [narrow, CASE])[0]
    assert said == (
        "block_mask blocks:size=16:level=0.8: blocks of 16 do not divide N = 100, K = 192, nor does any other size: "
        "the nearest that they divide are N = 96 or 112"
    )
    assert fits is None


def test_the_limit_goes_by_the_blocks_that_are_kept() -> None:
    assert parse_spec(PICKS["block_mask"])[1] == {"size": 16, "level": 0.8}
    layer = CASE.layer(torch.device("cpu"))
    kept = int(layer.blocks.kept_RC.sum())
    weight = BlockSparse._kernel(layer.picks).pack(Piece(layer.source, mask=layer.blocks), 16)
    assert weight.operand.values == kept * 256 == round(0.2 * 8 * 12) * 256
    assert weight.operand.size == kept * (256 * 2 + 8) + 8 * (128 // 16 + 1)


@pytest.mark.parametrize(("size", "columns"), [(8, 32), (16, 32), (32, 64)])
def test_of_x_only_sectors_that_a_block_meets_must_be_read(size: int, columns: int) -> None:
    """Of 32 bytes: 16 features in bf16, of which a block of eight meets half. In backward likewise of the gradient."""
    kept_RC = torch.zeros(128 // size, 192 // size, dtype=torch.bool)
    kept_RC[0, 0] = kept_RC[0, -1] = True
    source = GeneratedWeights(128, 192, torch.bfloat16, torch.device("cpu"), seed=0)
    layer = Layer(source, {"block_kernel": "reference", "block_mask": BlockMask(kept_RC, size)}, backward=True)
    alone: Any = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    method = BlockSparse(layer, alone)
    assert method.read() == (columns, max(size, 16))
    products = method.work(8)["products"]
    whole = METHODS.get("dense_single")(Layer(source), alone).work(8)["products"]
    assert products.written_bytes == whole.written_bytes, "y has all features: where no block is, the bias"
    assert method.work(16)["products"].first_bytes - products.first_bytes == 8 * columns * 2
    both = method.work(8, backward=True)["products"]
    assert both.written_bytes == 2 * 8 * (128 + 192), "the gradient of x has zeros where no block is"
