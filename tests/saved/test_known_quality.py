"""What a row loses is computed once in a session: by the row that meets the most rows of X."""

from __future__ import annotations

import pytest

from blockshock.measure import QualitySums
from blockshock.phases import Case, correctness
from blockshock.ranks import Ranks
from blockshock.saved import is_known

INFO = {"method": "pruned", "picks": {"pruner": "magnitude"}, "workload": "gaussian", "N": 64, "K": 32, "dtype": "bf16"}
SAID = INFO | {"B": 16, "quality": {"output_error": 0.3}}


@pytest.mark.parametrize(
    ("other", "known"),
    [
        ({"B": 16}, True),
        ({"B": 4}, True),
        ({"B": 17}, False),
        ({"picks": {"pruner": "random"}}, False),
        ({"picks": {"pruner": "magnitude", "storage": "masked"}}, True),
        ({"N": 32}, False),
        ({"dtype": "fp16"}, False),
        ({"workload": "uniform"}, False),
    ],
)
def test_a_row_that_met_as_many_rows_of_x_says_it(other: dict[str, object], known: bool) -> None:
    row = INFO | {"B": 4} | other
    assert is_known([SAID], row) == known
    assert not is_known([row], row), "one that was not asked says nothing"


@pytest.mark.parametrize("method", ["pruned", "pruned_tp_row", "pruned_tp_col"])
def test_it_is_what_phase_0_finds(method: str, cpu_ranks: Ranks) -> None:
    case = Case(method, {"kernel": "reference", "pruner": "magnitude"}, "gaussian", 64, 48, 8, "bf16")
    whole = [
        sum(found, QualitySums()).quality()
        for found in (
            [result.lost for result in cpu_ranks.run(correctness.run, case)],
            cpu_ranks.run(correctness.lost_by, case),
        )
    ]
    assert whole[0] == whole[1]
    assert whole[0]["output_error"] > 0.1
