"""Drift: a layer's output fed back to it, 256 times, beside float64; not twice as far off as the dense product."""

from dataclasses import replace

import pytest
import torch
from refusing import refusals

from blockshock.machine.combines.nccl import Nccl
from blockshock.phases import drift
from blockshock.phases.case import Case
from blockshock.plugin import Row
from blockshock.plugin.phases import DRIFT
from blockshock.ranks import Ranks

CASE = Case("block_shock", {"kernel": "gathered", "mask": "1100"}, "gaussian", 128, 128, 8, "bf16")


@pytest.mark.correctness
def test_drift_is_that_of_the_dense_product(drift_case: Case, row: Row) -> None:
    row.measure(DRIFT, drift_case)


def _run_without_its_reduce(case: Case) -> drift.DriftResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nccl, "sum", lambda self, part: part.all())
        return drift.run(case, steps=4)


def test_a_wrong_layer_is_caught(cpu_ranks: Ranks) -> None:
    assert "times the dense product's; 2 times passes" in (
        cpu_ranks.run(_run_without_its_reduce, CASE)[0].failure() or ""
    )


def test_outputs_that_are_no_inputs_are_refused(cpu_ranks: Ranks) -> None:
    for said in refusals(cpu_ranks, drift.run, replace(CASE, K=64)):
        assert said.startswith("InputError: ")
        assert "N and K must be equal, got N = 128, K = 64" in said


def test_an_iteration_that_comes_to_nothing_is_right(cpu_ranks: Ranks) -> None:
    """So many rows of W′ are lost that the second outputs are zeros, in float64 too."""
    lost = Case("recipe", {"recipe": "supermask"}, "gaussian", 128, 128, 8, "fp32")
    for found in cpu_ranks.run(drift.run, lost, 4):
        assert found.failure() is None
        assert found.relative_error[0] > 0
        assert found.relative_error[1:] == [0.0] * 3
    zeros = torch.zeros(2, 3)
    assert torch.equal(drift._again(lambda x: x, zeros), zeros)
    assert drift._relative(torch.ones(2, 3), zeros) == float("inf")
    assert drift.DriftResult([], [], [], [], drift._ratios([float("inf")], [0.0]), "").failure() is not None


def test_the_ratio_is_that_of_all_steps_so_far() -> None:
    found = drift._ratios([3.0, 4.0, 0.0], [1.0, 1.0, 1.0])
    assert found == pytest.approx([3.0, (25 / 2) ** 0.5, (25 / 3) ** 0.5])
    assert drift._ratios([0.0, 1.0], [0.0, 0.0]) == [1.0, float("inf")]
    assert drift.DriftResult([], [], [], [], [1.0, float("nan")], "").failure() is not None
