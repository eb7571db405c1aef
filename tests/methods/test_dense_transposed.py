"""Dense rows whose weight is stored transposed: right both ways, said to be so, refused where it cannot be."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from blockshock import replace_linears
from blockshock.errors import InputError
from blockshock.kernels.dense import is_transposed
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.methods import method_of
from blockshock.phases import backward, correctness
from blockshock.phases.case import Case, build, obstacle
from blockshock.ranks import Ranks

ROWS = [f"{name}:transposed=yes" for name in ("dense_single", "dense_tp_row", "dense_tp_col")]


def case_of(row: str, **more: str) -> Case:
    return Case(row, {}, "gaussian", 96, 160, 6, "bf16", **more)


def _checked(case: Case) -> tuple[str, bool, list[str | None]]:
    """What ran, whether memory holds Wᵀ, and how each pass failed."""
    packed = build(case).method.packings()[0]
    forward, both = correctness.run(case), backward.check(case)
    failures = [_failure(forward.errors, forward.roundings)]
    failures += [_failure(errors, both.roundings) for errors in both.errors.values()]
    return forward.algorithm, is_transposed(packed.values), failures


def _failure(errors: ErrorSums, roundings: int) -> str | None:
    found: list[ErrorSums | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, errors)
    return Accuracy.of(sum(filter(None, found), ErrorSums()), roundings).failure()


@pytest.mark.parametrize("row", ROWS)
def test_it_is_right_forward_and_backward(row: str, cpu_ranks: Ranks) -> None:
    for algorithm, transposed, failures in cpu_ranks.run(_checked, case_of(row)):
        assert algorithm.startswith("dense transposed")
        assert transposed
        assert not any(failures)


NOT = (
    ({"optimizer": "adamw"}, "holds weights that are not trained: leave it out of a layer that is"),
    ({"picks": {"format": "int8"}}, "no format int8, .*leave it out, or take format plain"),
)


@pytest.mark.parametrize(("what", "says"), NOT)
@pytest.mark.parametrize("row", ROWS)
def test_what_it_is_not_for_is_said_before_anything_is_built(row: str, what: Any, says: str, cpu_ranks: Ranks) -> None:
    case = replace(case_of(row), **what)
    assert all(re.search(says, str(reason)) for reason in cpu_ranks.run(obstacle, case))
    with pytest.raises(InputError, match=says):
        cpu_ranks.run(build, case)


@pytest.mark.parametrize("row", ROWS)
def test_a_model_that_only_goes_forward_can_have_it(row: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 64))
    left = replace_linears(copy.deepcopy(model), row).left
    assert "not trained" in left["0"]
    assert left["0"].endswith("with frozen=True, which only goes forward, it can be replaced")
    for frozen in (False, True):
        left = replace_linears(copy.deepcopy(model), f"{row}-int8", frozen=frozen).left
        assert "it can be replaced" not in left["0"]
    x_BK = torch.randn(3, 96)
    right = model(x_BK)
    assert replace_linears(model, row, frozen=True).replaced == ("0",)
    torch.testing.assert_close(model(x_BK), right)


@pytest.mark.parametrize("row", ["pruned:transposed=yes", "block_sparse:transposed=yes", "recipe:transposed=yes"])
def test_rows_that_hold_something_else_do_not_take_it(row: str) -> None:
    with pytest.raises(InputError, match="takes no parameter, not 'transposed'"):
        method_of(row)
