"""In a format, where y is a sum of parts: a row of W has one scale, and a token one in each rank's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus

from blockshock.errors import InputError
from blockshock.kernels import Format, build_format
from blockshock.machine.collectives import Alone
from blockshock.matrices import GeneratedWeights, WeightSource
from blockshock.measure import Accuracy, ErrorSums, QualitySums
from blockshock.methods import METHODS, Layer
from blockshock.methods.in_formats import InFormats
from blockshock.phases import correctness, forward
from blockshock.phases.case import Case, obstacle
from blockshock.phases.correctness import CorrectnessResult
from blockshock.ranks import Ranks

pytestmark = pytest.mark.correctness
Fault = Callable[[pytest.MonkeyPatch], None]
SIZE = ("gaussian", 64, 96, 7)
ROW = Case("dense_tp_row", {"format": "int8"}, *SIZE, "bf16")
HALVES = Case("block_shock", {"kernel": "reference", "mask": "magnitude", "format": "int8"}, *SIZE, "bf16")
PRUNED = replace(ROW, method="pruned_tp_row", K=32).picking(kernel="reference", pruner="magnitude:permute=yes")
"""Of few columns: every rank searches for their order, which takes its time by their number."""
DTYPES = {"int8": "bf16", "fp8": "fp32"}
CASES = [ROW, HALVES, PRUNED]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)


def _in_formats(case: Case) -> list[CorrectnessResult]:
    return [correctness.run(replace(case.picking(format=name), dtype=dtype)) for name, dtype in DTYPES.items()]


def _failure(results: list[CorrectnessResult]) -> str | None:
    return Accuracy.of(sum((result.errors for result in results), ErrorSums()), results[0].roundings).failure()


def _check(per_rank: list[list[CorrectnessResult]]) -> None:
    for results in zip(*per_rank, strict=True):
        assert _failure(list(results)) is None
        assert all(result.same_on_ranks and result.same_again for result in results)


@EACH
def test_two_ranks_are_right_for_what_they_store_together(case: Case, cpu_ranks: Ranks) -> None:
    _check(cpu_ranks.run(_in_formats, case))


@EACH
def test_so_are_one_and_four(case: Case, other_ranks: Ranks) -> None:
    _check(other_ranks.run(_in_formats, case))


def _own_scales(patch: pytest.MonkeyPatch) -> None:
    """Each part has those of its own rows."""
    patch.setattr(InFormats, "_shared_scales", lambda self, format, pieces: None)


def _scales_of_this_rank(patch: pytest.MonkeyPatch) -> None:
    """Ranks do not agree on them."""
    patch.setattr(dist, "all_reduce", lambda *args, **kwargs: None)


def _scales_of_the_whole_token(patch: pytest.MonkeyPatch) -> None:
    """What phase 0 goes by is another x than what ranks store of theirs."""
    patch.setattr(InFormats, "met", classmethod(lambda cls, layer, x_BK, ranks=1: layer.format.represented(x_BK)))


def _run(case: Case, fault: Fault) -> CorrectnessResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is _scales_of_this_rank:
            built = correctness.build
            patch.setattr(correctness, "build", lambda case: _without_agreeing(built, case))
        else:
            fault(patch)
        return correctness.run(case)


def _without_agreeing(build: Callable[[Case], object], case: Case) -> object:
    with pytest.MonkeyPatch.context() as patch:
        _scales_of_this_rank(patch)
        return build(case)


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("case", "fault"),
    [
        *((case, fault) for case in CASES for fault in (_own_scales, _scales_of_this_rank)),
        *((case, _scales_of_the_whole_token) for case in (ROW, PRUNED)),
    ],
)
def test_a_fault_is_caught(case: Case, fault: Fault, name: str, cpu_ranks: Ranks) -> None:
    case = replace(case.picking(format=name), dtype="fp32")
    assert _failure(cpu_ranks.run(_run, case, fault)) is not None


def _format(name: str) -> Format:
    found = build_format(name)
    assert found is not None
    return found


def test_each_rank_has_a_scale_a_token_and_all_have_one_a_row() -> None:
    layer, x_BK = Layer(GeneratedWeights(16, 32, torch.float32, "cpu"), {"format": "int8"}), torch.randn(5, 32)
    x_BK[:, 16:] *= 100
    row, exact = METHODS.get("dense_tp_row"), _format("int8").represented
    assert torch.equal(row.met(layer, x_BK, 2), torch.cat([exact(x_BK[:, :16]), exact(x_BK[:, 16:])], 1))
    assert torch.equal(row.met(layer, x_BK), exact(x_BK))
    assert torch.equal(METHODS.get("dense_tp_col").met(layer, x_BK, 2), exact(x_BK))
    assert torch.equal(METHODS.get("block_shock").met(layer, x_BK, 2), exact(x_BK)), "both halves meet all of it"
    assert torch.equal(row.multiplied(layer, 2).rows(0, 16), exact(layer.source.rows(0, 16)))


def _loss(results: list[CorrectnessResult], name: str) -> float:
    return sum((getattr(result, name) for result in results), QualitySums()).quality()["output_error"]


def test_two_halves_lose_what_the_format_does_and_the_first_what_its_mask_does(cpu_ranks: Ranks) -> None:
    results = cpu_ranks.run(correctness.run, HALVES)
    assert 1e-3 < _loss(results, "lost") < 0.05
    assert 0.1 < _loss(results, "lost_by_half") < 0.5
    plain = cpu_ranks.run(correctness.run, HALVES.picking(format=None))
    assert plain[0].lost is None
    assert _loss(results, "lost_by_half") == pytest.approx(_loss(plain, "lost_by_half"), abs=0.02)


@EACH
def test_times_and_memory_are_told(case: Case, cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(forward.run, case, "sync", 2, 1, False):
        assert {"quantise", "matmul", "dequantise", "reduce"} <= set(found.stages)
        assert found.weight_bytes <= found.estimated_weight_bytes < case.N * case.K * 2
        assert {unit.split()[0] for unit in found.work["products"].flops} == {"int8"}


def test_two_halves_on_one_device_quantise_x_once(monkeypatch: pytest.MonkeyPatch) -> None:
    picks = {"kernel": "reference", "mask": "1100", "format": "int8"}
    layer = Layer(GeneratedWeights(16, 32, torch.float32, "cpu"), picks)
    halves, x_BK, calls = METHODS.get("block_shock")(layer, Alone()), torch.randn(5, 32), []
    quantise_in = Format.quantise_in
    monkeypatch.setattr(Format, "quantise_in", lambda *args: calls.append(args) or quantise_in(*args))
    y_BN = halves(x_BK)
    assert len(calls) == 1
    wanted = halves.met(layer, x_BK) @ halves.multiplied(layer, 1).rows(0, 16).T
    assert (y_BN - wanted).norm() < 1e-6 * wanted.norm()
    assert halves(x_BK[:0]).shape == (0, 16)


class _Rows(WeightSource):
    """Ones, but for one number, which nobody looks at before."""

    def __init__(self, value: float) -> None:
        super().__init__(16, 32, torch.float32, torch.device("cpu"), 0, None)
        self._value = value

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        w_NK = torch.ones(16, 32)
        w_NK[3, 20] = self._value
        return w_NK[start:stop]


def _refused(value: float) -> str:
    layer = Layer(_Rows(value), {"format": "int8"})
    try:
        METHODS.get("dense_tp_row")(layer, dist.group.WORLD)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_one_rank_cannot_store_all_refuse(value: float, cpu_ranks: Ranks) -> None:
    for reason in cpu_ranks.run(_refused, value):
        assert reason.startswith("format int8: row 3 of W goes up to ")


def test_the_ablation_of_the_halves_takes_none() -> None:
    assert "format" not in METHODS.get("masked_split_dense").axes


@pytest.mark.gpu2
@needs_two_gpus
@pytest.mark.parametrize("combine", ["nccl", "two_shot", "one_shot", "overlap"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("kernel", ["cusparselt:search=no", "wgmma"])
def test_two_gpus_add_them_up_in_each_way(kernel: str, name: str, combine: str, gpu_ranks: Ranks) -> None:
    for case in CASES:
        picked = {} if case is ROW else {"kernel": kernel}
        found = replace(case.picking(**picked, combine=combine, format=name), N=512, K=1536, B=64)
        if reason := gpu_ranks.run(obstacle, found)[0]:
            pytest.skip(reason)
        results = gpu_ranks.run(correctness.run, found)
        assert Accuracy.of(sum((one.errors for one in results), ErrorSums()), results[0].roundings).failure() is None
        assert all(result.same_on_ranks and result.same_again for result in results)
