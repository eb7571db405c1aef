"""Pruned layers: right for W′ on every group of ranks, faults of each kind caught, and what W′ loses told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from blockshock.matrices.workloads import build_workload
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.measure.quality import QualitySums
from blockshock.methods import METHODS, Layer, Promise, Role, Span
from blockshock.methods.dense_single import Single
from blockshock.methods.pieces import PieceMethod
from blockshock.methods.w_prime import PrunedMethod
from blockshock.phases import backward, correctness, drift, trajectory
from blockshock.phases.case import Case, build, obstacle
from blockshock.phases.correctness import CorrectnessResult
from blockshock.pruning import PRUNERS, PrunedWeights
from blockshock.ranks import Ranks
from blockshock.training.sparse_storages import MaskedStorage

pytestmark = pytest.mark.correctness
CASE = Case("pruned", {"kernel": "reference", "pruner": "magnitude"}, "gaussian", 128, 192, 8, "bf16")
METHODS_OF_IT = ("pruned", "pruned_dense", "pruned_tp_row", "pruned_tp_col")
Fault = Callable[[pytest.MonkeyPatch], None]


def _w_in_place_of_it(patch: pytest.MonkeyPatch) -> None:
    """Nothing was pruned."""
    patch.setattr(PrunedMethod, "hold", Single.hold)
    patch.setattr(PrunedMethod, "_kernel_name", "dense", raising=False)


def _a_wrong_mask(patch: pytest.MonkeyPatch) -> None:
    """What is multiplied was pruned by another mask than what is promised."""
    hold = PrunedMethod.hold

    def faulty(self: PrunedMethod, layer: Layer, bias: torch.Tensor | None) -> object:
        return hold(self, replace(layer, picks={**layer.picks, "pruner": "random"}), bias)

    patch.setattr(PrunedMethod, "hold", faulty)


def _one_kept_value_lost(patch: pytest.MonkeyPatch) -> None:
    packed = PieceMethod._packed

    def faulty(self: PieceMethod, *rest: object) -> object:
        weight = packed(self, *rest)  # type: ignore[arg-type]
        weight.values[3, 5] = 0  # type: ignore[union-attr]
        return weight

    patch.setattr(PieceMethod, "_packed", faulty)


def _run(case: Case, fault: Fault | None = None) -> CorrectnessResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return correctness.run(case)


def _failure(results: list[CorrectnessResult]) -> str | None:
    return Accuracy.of(sum((result.errors for result in results), ErrorSums()), results[0].roundings).failure()


def _quality(results: list[CorrectnessResult]) -> dict[str, float]:
    return sum((result.lost for result in results if result.lost is not None), QualitySums()).quality()


def test_what_they_are() -> None:
    kinds = {name: METHODS.get(name) for name in METHODS_OF_IT}
    assert {kind.promise for kind in kinds.values()} == {Promise.OWN_WEIGHTS}
    assert {name: kind.role for name, kind in kinds.items() if kind.role is not Role.SUBJECT} == {
        "pruned_dense": Role.ABLATION
    }
    assert {name for name, kind in kinds.items() if kind.span is Span.ONE} == {"pruned", "pruned_dense"}
    assert {name for name, kind in kinds.items() if kind.sharded} == {"pruned_tp_row", "pruned_tp_col"}


def _every(case: Case) -> list[tuple[str, CorrectnessResult]]:
    found = []
    for method in METHODS_OF_IT:
        for kernel, pruner in (("reference", "magnitude"), ("gathered", "1100"), ("auto", "tile_magnitude")):
            picked = case.picking(kernel=kernel, pruner=pruner).of(method, METHODS.get(method).axes)
            found.append((picked.id, correctness.run(picked)))
    return found


def _check_every(ranks: Ranks) -> None:
    rows = ranks.run(_every, replace(CASE, N=1536, K=384, workload="recorded"))  # with a bias
    for row in zip(*rows, strict=True):
        results = [result for _, result in row]
        assert _failure(results) is None, row[0][0]
        assert all(result.same_again and result.same_on_ranks for result in results), row[0][0]
        assert 0.5 < _quality(results)["kept_energy"] < 1, row[0][0]


def test_every_one_is_right_for_its_own_w_on_one_and_on_four_ranks(other_ranks: Ranks) -> None:
    _check_every(other_ranks)


def test_every_one_is_right_for_its_own_w_on_two_ranks(cpu_ranks: Ranks) -> None:
    _check_every(cpu_ranks)


@pytest.mark.parametrize("fault", [_w_in_place_of_it, _a_wrong_mask, _one_kept_value_lost])
def test_a_wrong_w_is_caught(fault: Fault, cpu_ranks: Ranks) -> None:
    assert _failure(cpu_ranks.run(_run, CASE)) is None
    assert _failure(cpu_ranks.run(_run, CASE, fault)) is not None


def test_the_quality_is_what_w_loses(cpu_ranks: Ranks) -> None:
    case = replace(CASE, workload="recorded", N=384, K=1536)
    results = cpu_ranks.run(_run, case)
    layer = case.layer(torch.device("cpu"))
    w_NK, own_NK = layer.source.rows(0, 384).double(), prune_whole(layer).rows(0, 384).double()
    x_BK = x_of(case).double()
    found = _quality(results)
    wanted = (x_BK @ own_NK.T - x_BK @ w_NK.T).norm() / (x_BK @ w_NK.T).norm()
    assert found["output_error"] == pytest.approx(wanted.item(), rel=1e-9)
    assert found["kept_magnitude"] == pytest.approx((own_NK.abs().sum() / w_NK.abs().sum()).item(), rel=1e-9)
    assert found["kept_energy"] == pytest.approx((own_NK.square().sum() / w_NK.square().sum()).item(), rel=1e-9)
    dense = cpu_ranks.run(_run, case.of("dense_single"))
    assert all(result.lost is None for result in dense), "what promises to be W loses nothing"


def prune_whole(layer: Layer) -> PrunedWeights:
    return layer.pruned(slice(None), slice(None))


def x_of(case: Case) -> torch.Tensor:
    return build_workload(case.workload).inputs(
        case.B, case.K, case.torch_dtype, torch.device("cpu"), case.seed, case.N
    )


@pytest.mark.parametrize("workload", ["gaussian", "recorded"])
def test_calibration_inputs_are_not_those_that_quality_is_measured_on(workload: str) -> None:
    layer = replace(CASE, workload=workload, N=384, K=1536, B=384).layer(torch.device("cpu"))
    assert layer.inputs is not None
    x_TK, x_BK = layer.inputs(), x_of(replace(CASE, workload=workload, N=384, K=1536, B=384))
    assert x_TK.dtype == x_BK.dtype
    same = (x_TK[:, None, :8] == x_BK[None, :, :8]).all(-1)
    assert x_TK.shape[1:] == x_BK.shape[1:]
    assert not same.any()
    assert torch.equal(layer.inputs(), x_TK)


def _obstacles(cases: list[Case]) -> list[str | None]:
    return [obstacle(case) for case in cases]


def test_what_cannot_run_says_why(cpu_ranks: Ranks) -> None:
    rows = {
        "kernel gathered: needs a row-periodic mask": CASE.picking(kernel="gathered"),
        "pruned_tp_row: K": replace(CASE, method="pruned_tp_row", K=188 + 8),
        "N to be a multiple of 4": replace(CASE, N=130).picking(pruner="tile_magnitude"),
    }
    found = cpu_ranks.run(_obstacles, [CASE.picking(kernel="gathered", pruner="1100"), *rows.values()])[0]
    assert found[0] is None
    for message, reason in zip(rows, found[1:], strict=True):
        assert message in (reason or "runs"), message


def _never_whole(case: Case) -> int:
    """Elements of the largest block that a pruner is given."""
    sizes = []
    kind = PRUNERS.get("magnitude")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "blockshock.pruning.pruned.row_blocks", lambda rows, *_, **__: [(i, i + 8) for i in range(0, rows, 8)]
        )
        given = kind.prune
        patch.setattr(kind, "prune", lambda self, w, start: (sizes.append(w.numel()), given(self, w, start))[1])
        build(case)
    return max(sizes)


def test_a_pruner_sees_blocks_of_its_ranks_own_part(cpu_ranks: Ranks) -> None:
    assert set(cpu_ranks.run(_never_whole, replace(CASE, method="pruned_tp_row"))) == {8 * 96}
    assert set(cpu_ranks.run(_never_whole, replace(CASE, method="pruned_tp_col"))) == {8 * 192}


# The other phases -----------------------------------------------------------------------------------------------------

TRAINED = replace(CASE, dtype="fp32", optimizer="momentum").picking(storage="masked")


def _a_dropped_weight_that_trains(patch: pytest.MonkeyPatch) -> None:
    """The first dropped weight of each row gets a gradient, and nobody sets it back."""

    def faulty(self: MaskedStorage, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        grad_NK = grad_y_BN.T @ x_BK
        first = self.dropped_NK.byte().argmax(1, keepdim=True)
        return grad_NK.masked_fill(self.dropped_NK.scatter(1, first, False), 0)

    patch.setattr(MaskedStorage, "grad_weight", faulty)
    patch.setattr(MaskedStorage, "_apply_mask", lambda self: None)


def _backward(case: Case, fault: Fault | None = None) -> ErrorSums:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return backward.check(case).errors["mse_zero"]


def _drift(case: Case, fault: Fault | None = None) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return drift.run(replace(case, N=128, K=128), steps=4).failure()


def _trajectory(case: Case, fault: Fault | None = None) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return trajectory.run(case, steps=12).failure()


def test_gradients_drift_and_training_are_held_to_its_own_w(cpu_ranks: Ranks) -> None:
    for fault in (_w_in_place_of_it, _a_wrong_mask):
        assert Accuracy.of(sum(cpu_ranks.run(_backward, CASE, fault), ErrorSums()), 1).failure(), fault.__name__
        assert all(cpu_ranks.run(_drift, CASE, fault)), fault.__name__
        assert all("W is" in (found or "") for found in cpu_ranks.run(_trajectory, TRAINED, fault)), fault.__name__
    found = cpu_ranks.run(_trajectory, TRAINED, _a_dropped_weight_that_trains)
    assert all("W is" in (one or "") for one in found)
    assert cpu_ranks.run(_trajectory, TRAINED) == [None, None]
    assert Accuracy.of(sum(cpu_ranks.run(_backward, CASE), ErrorSums()), 1).failure() is None
    assert cpu_ranks.run(_drift, CASE) == [None, None]
