"""Dense rows whose weight is stored transposed: right in every pass, said to be so, refused where it cannot be."""

import pytest
import torch.distributed as dist

from blockshock.errors import InputError
from blockshock.kernels.dense import is_transposed
from blockshock.measure.accuracy import Accuracy, ErrorSums
from blockshock.methods import method_of
from blockshock.phases import backward, correctness, trajectory
from blockshock.phases.case import Case, build
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


@pytest.mark.parametrize("row", ROWS)
def test_it_trains_as_dense(row: str, cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(trajectory.run, case_of(row, optimizer="adamw")):
        assert found.failure() is None


def test_formats_take_rows_alone(cpu_ranks: Ranks) -> None:
    with pytest.raises(InputError, match=r"format int8: .*leave transposed=yes out, or take format plain"):
        cpu_ranks.run(build, case_of(ROWS[0]).picking(format="int8"))


@pytest.mark.parametrize("row", ["pruned:transposed=yes", "block_sparse:transposed=yes", "recipe:transposed=yes"])
def test_rows_that_hold_something_else_do_not_take_it(row: str) -> None:
    with pytest.raises(InputError, match="takes no parameter, not 'transposed'"):
        method_of(row)
