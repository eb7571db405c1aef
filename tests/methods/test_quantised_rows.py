"""Rows in a format: right for what they store of W and of x, faults caught, what they lose told, names as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from blockshock import MethodLinear, replace_linears
from blockshock.errors import InputError
from blockshock.kernels import FORMATS, E5m2, Packed, build_format
from blockshock.kernels.formats import base, packed
from blockshock.machine.collectives import Alone
from blockshock.matrices import GeneratedWeights
from blockshock.measure import Accuracy, ErrorSums, QualitySums
from blockshock.methods import METHODS, Layer, Promise, axis_of, parse_row
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.phases import correctness, forward
from blockshock.phases.case import Case, obstacle
from blockshock.phases.correctness import CorrectnessResult
from blockshock.plugin.records import describe_case
from blockshock.ranks import Ranks

pytestmark = pytest.mark.correctness
DENSE = Case("dense_single", {"format": "int8"}, "gaussian", 128, 192, 8, "bf16")
PRUNED = Case(
    "pruned", {"kernel": "reference", "pruner": "magnitude", "format": "int8"}, "gaussian", 128, 192, 8, "bf16"
)
Fault = Callable[[pytest.MonkeyPatch], None]


def _one_scale_in_all(patch: pytest.MonkeyPatch) -> None:
    """That of the largest row, for all of them."""
    quantise = base.Format.quantise

    def faulty(self: base.Format, rows_RK: torch.Tensor) -> base.Stored:
        whole, scale_11 = quantise(self, rows_RK.reshape(1, -1))
        return base.Stored(whole.view(rows_RK.shape), scale_11.expand(len(rows_RK), 1).contiguous())

    patch.setattr(base.Format, "quantise", faulty)


def _the_scale_of_the_wrong_axis(patch: pytest.MonkeyPatch) -> None:
    """Rows have those of columns, as far as there are as many."""
    quantise = base.Format.quantise

    def faulty(self: base.Format, rows_RK: torch.Tensor) -> base.Stored:
        scale_R1 = quantise(self, rows_RK.T)[1][: len(rows_RK)]
        scaled_RK = (rows_RK.float() / scale_R1).clamp(-self.largest, self.largest)
        return base.Stored(_stored(self, scaled_RK), scale_R1)

    patch.setattr(base.Format, "quantise", faulty)


def _cut_not_scaled(patch: pytest.MonkeyPatch) -> None:
    """Each scale is half of what it takes, and what is too large for the format then is cut."""

    def faulty(self: base.Format, rows_RK: torch.Tensor) -> base.Stored:
        x_RK = rows_RK.float()
        scale_R1 = x_RK.abs().amax(1, keepdim=True) / self.largest / 2
        return base.Stored(_stored(self, (x_RK / scale_R1).clamp_(-self.largest, self.largest)), scale_R1)

    patch.setattr(base.Format, "quantise", faulty)


def _a_little_too_small(patch: pytest.MonkeyPatch) -> None:
    """What is stored is another number than the nearest."""
    right = base._quantised

    def faulty(rows_RK: torch.Tensor, largest: float, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        q_RK, scale_R1 = right(rows_RK, largest, stored)
        return (q_RK.float() * 0.9).to(stored), scale_R1

    patch.setattr(base, "_quantised", faulty)


def _stored(format: base.Format, scaled_RK: torch.Tensor) -> torch.Tensor:
    whole = format.stored is torch.int8
    return (scaled_RK.round() if whole else scaled_RK).to(format.stored)


def _weights_in_the_numbers_of_x(patch: pytest.MonkeyPatch) -> None:
    """W is stored in e4m3, and said to be in e5m2."""
    patch.setattr(E5m2, "quantise", lambda self, rows_RK: _format("fp8").quantise(rows_RK))


def _a_scale_of_weights_lost(patch: pytest.MonkeyPatch) -> None:
    quantised = packed.PackedQuantised.__init__

    def faulty(self: packed.PackedQuantised, *args: object) -> None:
        quantised(self, *args)  # type: ignore[arg-type]
        self.scale_N[3] = 1

    patch.setattr(packed.PackedQuantised, "__init__", faulty)


def _format(name: str) -> base.Format:
    found = build_format(name)
    assert found is not None
    return found


def _run(case: Case, fault: Fault | None = None) -> CorrectnessResult:
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch)
        return correctness.run(case)


def _failure(results: list[CorrectnessResult]) -> str | None:
    return Accuracy.of(sum((result.errors for result in results), ErrorSums()), results[0].roundings).failure()


def _loss(results: list[CorrectnessResult]) -> float:
    parts = [result.lost for result in results if result.lost is not None]
    return sum(parts, QualitySums()).quality()["output_error"]


def _all(case: Case) -> list[tuple[str, CorrectnessResult]]:
    """In each format and dtype, by each kernel that a CPU has; with a bias, and with channels permuted."""
    found = []
    for name in ("int8", "fp8"):
        for dtype, kernel, pruner in (
            ("bf16", "reference", "magnitude"),
            ("fp16", "auto", "tile_magnitude"),
            ("fp32", "auto", "magnitude:permute=yes"),
        ):
            picked = replace(case.picking(kernel=kernel, pruner=pruner, format=name), dtype=dtype)
            for method in ("pruned", "pruned_tp_col", "dense_single", "dense_tp_col"):
                row = picked.of(method, METHODS.get(method).axes)
                found.append((row.id, correctness.run(row)))
    return found


def test_each_is_right_for_what_it_stores_and_loses_what_its_format_does(cpu_ranks: Ranks) -> None:
    rows = cpu_ranks.run(_all, replace(PRUNED, workload="recorded", N=1536, K=384))
    for row in zip(*rows, strict=True):
        name, results = row[0][0], [result for _, result in row]
        assert _failure(results) is None, name
        assert all(result.same_again and result.same_on_ranks for result in results), name
        least, most = (1e-3, 0.05) if name.startswith("dense") else (0.1, 0.4)
        assert least < _loss(results) < most, name


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("case", [DENSE, PRUNED], ids=["dense", "pruned"])
@pytest.mark.parametrize(
    "fault",
    [_one_scale_in_all, _the_scale_of_the_wrong_axis, _cut_not_scaled, _a_little_too_small, _a_scale_of_weights_lost],
)
def test_a_fault_is_caught(fault: Fault, case: Case, name: str, cpu_ranks: Ranks) -> None:
    case = case.picking(format=name)
    assert _failure(cpu_ranks.run(_run, case, fault)) is not None


def _with_weights_in_e5m2(case: Case) -> list[CorrectnessResult]:
    """Rows of whole ones, of those that are kept, and of sums of parts; and the first two with a fault."""
    rows = [case.of(method, METHODS.get(method).axes) for method in ("dense_single", "pruned", "dense_tp_row")]
    faulty = [_run(row, _weights_in_the_numbers_of_x) for row in rows[:2]]
    return [_run(rows[0].picking(format="fp8")), *map(_run, rows), *faulty]


def test_weights_in_e5m2_are_right_and_lose_more_and_those_in_e4m3_are_none(cpu_ranks: Ranks) -> None:
    each = cpu_ranks.run(_with_weights_in_e5m2, PRUNED.picking(format="fp8_e5m2"))
    found = [list(results) for results in zip(*each, strict=True)]
    assert [_failure(results) is None for results in found] == [True] * 4 + [False] * 2
    # In x and in W as much is off; then in W twice as much.
    assert _loss(found[1]) / _loss(found[0]) == pytest.approx((5 / 2) ** 0.5, rel=0.1)


def test_the_loss_is_that_of_both_factors(cpu_ranks: Ranks) -> None:
    case = DENSE.picking(format="fp8")
    layer, x_BK = case.layer(torch.device("cpu")), case.inputs(torch.device("cpu"))
    w_NK, exact = layer.source.rows(0, 128), _format("fp8").represented
    y_BN = x_BK.double() @ w_NK.double().T
    found = (exact(x_BK) @ exact(w_NK).T - y_BN).norm() / y_BN.norm()
    assert _loss(cpu_ranks.run(_run, case)) == pytest.approx(float(found))
    lost = cpu_ranks.run(correctness.lost_by, case)
    assert sum(lost, QualitySums()).quality()["output_error"] == pytest.approx(float(found))


@pytest.mark.parametrize(
    "case", [DENSE, PRUNED, DENSE.of("dense_tp_col", ("format",))], ids=["dense", "pruned", "a shard"]
)
def test_times_and_memory_are_told(case: Case, cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(forward.run, case, "sync", 2, 1, False):
        assert {"quantise", "matmul", "dequantise"} <= set(found.stages)
        assert found.weight_bytes == found.estimated_weight_bytes < 128 * 192 * 2
        assert set(found.work["products"].flops) == {"int8"}
        assert found.work["products"].first_bytes == found.weight_bytes + 8 * 192 * 2


def test_what_cannot_run_is_said(cpu_ranks: Ranks) -> None:
    backward = cpu_ranks.run(obstacle, DENSE, True)[0]
    assert "quantised weights go forward alone" in backward
    other = cpu_ranks.run(obstacle, PRUNED.picking(kernel="gathered", pruner="1100"), False)[0]
    assert (
        other
        == "format int8: kernel gathered does not multiply int8: pick cusparselt or reference or streamed or wgmma"
    )
    assert cpu_ranks.run(obstacle, DENSE, False)[0] is None


def test_what_it_promises_is_its_own_weights_unless_it_is_plain() -> None:
    dense = METHODS.get("dense_single")
    assert dense.promised({}) is dense.promised({"format": "plain"}) is Promise.DENSE
    assert dense.promised({"format": "fp8"}) is Promise.OWN_WEIGHTS
    assert describe_case(1, DENSE, "cpu", 1)["promise"] == "own weights"
    assert describe_case(1, DENSE.picking(format=None), "cpu", 1)["promise"] == "dense"


@pytest.mark.parametrize(
    ("name", "picks"),
    [
        ("dense_single", {}),
        ("dense_single-int8", {"format": "int8"}),
        ("pruned-auto-tile_magnitude-masked", {"kernel": "auto", "pruner": "tile_magnitude", "storage": "masked"}),
        ("pruned-auto-magnitude-fp8", {"kernel": "auto", "pruner": "magnitude", "format": "fp8"}),
        (
            "pruned-auto-magnitude-masked:every=2-int8",
            {"kernel": "auto", "pruner": "magnitude", "storage": "masked:every=2", "format": "int8"},
        ),
    ],
)
def test_rows_are_read_by_their_names(name: str, picks: dict[str, str]) -> None:
    row = parse_row(name)
    assert (row.picks, row.name) == (picks, name)


def test_a_row_without_a_format_is_what_it_was() -> None:
    assert parse_row("dense_single-plain").completed("cpu").name == "dense_single"
    assert parse_row("pruned-reference").completed("cpu", both_ways=False).name == "pruned-reference-magnitude"
    completed = parse_row("pruned-reference-magnitude-int8").completed("cpu", both_ways=False)
    assert completed.name == "pruned-reference-magnitude-int8"


def test_what_is_trained_takes_no_format() -> None:
    layer = Layer(GeneratedWeights(16, 16, torch.float32, "cpu"), {"format": "int8"}, backward=True)
    with pytest.raises(InputError, match="quantised weights go forward alone"):
        METHODS.get("dense_single")(layer, Alone())
    found = replace_linears(nn.Sequential(nn.Linear(16, 16)), "dense_single-int8")
    assert "quantised weights go forward alone" in str(found)
    with pytest.raises(InputError, match="quantised weights go forward alone"):
        MethodLinear(nn.Linear(16, 16), "dense_single-int8")


@pytest.mark.parametrize("row", ["dense_single-int8", "pruned-reference-magnitude-fp8"])
def test_a_model_that_goes_forward_takes_one(row: str) -> None:
    model, x_BK = nn.Sequential(nn.Linear(64, 32)), torch.randn(5, 64)
    y_BN = model(x_BK)
    replace_linears(model, row, frozen=True)
    assert isinstance(model[0], FrozenLinear)
    with torch.inference_mode():
        off = (model(x_BK) - y_BN).norm() / y_BN.norm()
    assert off < (0.02 if row.startswith("dense") else 0.6)


def test_a_layer_says_where_a_gradient_would_be_asked_of_it() -> None:
    layer = METHODS.get("dense_single")(
        Layer(GeneratedWeights(16, 16, torch.float32, "cpu"), {"format": "fp8"}), Alone()
    )
    x_BK = torch.ones(2, 16, requires_grad=True)
    assert isinstance(layer.packings()[0], Packed)
    with pytest.raises(InputError, match="quantised weights go forward alone"):
        layer(x_BK).sum().backward()


def test_a_new_format_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Int4(FORMATS.get("int8")):  # type: ignore[misc]
        largest = 7.0

    monkeypatch.setitem(FORMATS._entries, "int4", Int4)
    layer = Layer(GeneratedWeights(32, 64, torch.float32, "cpu"), {"format": "int4"})
    kind, x_BK = METHODS.get("dense_single"), torch.randn(5, 64)
    wanted = kind.met(layer, x_BK) @ kind.multiplied(layer, 1).rows(0, 32).T
    assert len(kind.met(layer, x_BK)[0].unique()) <= 15
    assert (kind(layer, Alone())(x_BK) - wanted).norm() < 1e-6 * wanted.norm()
    assert parse_row("dense_single-int4").picks == {"format": "int4"}
    assert "does not multiply int4: no kernel does" in str(
        axis_of("format").unsuitable("int4", replace(layer, picks={"kernel": "reference"}))
    )
