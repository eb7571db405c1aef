"""A model's linear layers, added up by their counts."""

from __future__ import annotations

from typing import Any

import pytest
from rows import Info, run_of, stepped, timed

from blockshock.report.models import model_lines
from blockshock.saved.schema import unfit

ONE: Info = {"role": "subject", "span": "one", "promise": "own weights", "ranks": 1}
FAST, SLOW = "pruned gathered magnitude", "pruned reference magnitude"


def use(name: str, count: int, model: str = "toy", of: int = 5, listed: bool = False) -> Info:
    return {"model": model, "name": name, "count": count, "of": of, "listed": listed}


def layer(N: int, uses: list[Info], times: dict[str, float], B: int = 1, **more: Any) -> list[Info]:
    """Rows at one point: dense, and pruned ones."""
    about = {"dense_single": {"role": "rival", "span": "one"}}
    return [timed(label, N, B, ms, layers=uses, **about.get(label, ONE) | more) for label, ms in times.items()]


UP, BOTH = [use("up", 2)], [use("q", 1), use("down", 2)]
"""Of five layers two have one shape, and three another that two of their names share."""


def test_layers_are_added_up_by_their_counts() -> None:
    rows = layer(128, UP, {"dense_single": 2.0, FAST: 1.0, SLOW: 3.0})
    rows += layer(64, BOTH, {"dense_single": 1.0, FAST: 0.5, SLOW: 0.1})
    rows += layer(64, [], {"dense_single": 1.0, FAST: 9.0}, B=4)
    assert [unfit(row) for row in rows if row["layers"]] == [None] * 6
    assert model_lines(run_of(rows)) == [
        "forward, all 5 linear layers of toy, one token (gaussian, bf16): pruned gathered magnitude, time ÷ "
        "best dense 0.50 (3.5 ms ÷ 7 ms)"
    ], "2 × 1.0 + 3 × 0.5 against 2 × 2.0 + 3 × 1.0; the other row takes 6.3"


def test_what_was_not_timed_or_is_wrong_is_not_counted() -> None:
    rows = layer(128, UP, {"dense_single": 2.0, FAST: 1.0}) + layer(64, BOTH, {"dense_single": 1.0, SLOW: 0.1})
    (line,) = model_lines(run_of(rows))
    assert "3 of 5 linear layers of toy, one token" in line
    assert f"{SLOW}, time ÷ best dense 0.10" in line
    assert model_lines(run_of(layer(128, UP, {FAST: 1.0}))) == [], "nothing beside it"
    wrong = [row | ({"wrong": "its output"} if row["label"] == FAST else {}) for row in rows]
    assert FAST not in "".join(model_lines(run_of(wrong)))
    assert model_lines(run_of([timed("dense_single", 64, 4, 1.0)])) == []


def test_each_b_pass_and_model_has_a_line_but_a_files_points_are_one_list() -> None:
    both = [use("q", 5), use("all", 7, "other", of=7)]
    times = {"dense_single": 1.0, FAST: 0.5}
    rows = layer(64, both, times, B=1) + layer(64, both, times, B=64)
    steps = [stepped(label, 64, 4, ms, layers=[use("q", 5)], **ONE) for label, ms in times.items()]
    steps[0] |= {"role": "rival", "promise": "dense"}
    told = [line.partition(":")[0] for line in model_lines(run_of([*rows, *steps]))]
    assert told == [
        "forward, all 5 linear layers of toy, one token (gaussian, bf16)",
        "forward, all 7 linear layers of other, one token (gaussian, bf16)",
        "forward, all 5 linear layers of toy, 64 tokens (gaussian, bf16)",
        "forward, all 7 linear layers of other, 64 tokens (gaussian, bf16)",
        "training step, all 5 linear layers of toy, 4 tokens (gaussian, bf16, sgd)",
    ]
    listed = [[use(f"at {B}", 1, "mine", of=2, listed=True)] for B in (1, 64)]
    (line,) = model_lines(run_of(layer(64, listed[0], times, B=1) + layer(64, listed[1], times, B=64)))
    assert line.startswith("forward, all 2 linear layers of mine (gaussian, bf16): ")


def test_two_files_of_points_of_one_name_are_two_models() -> None:
    times = {"dense_single": 1.0, FAST: 0.5}
    one, other = (use("64x64", count, "mine", of, True) for count, of in ((1, 3), (2, 3)))
    rows = layer(64, [one | {"list": "aa"}], times) + layer(128, [other | {"list": "bb"}], times)
    assert [line.partition(":")[0] for line in model_lines(run_of(rows))] == [
        "forward, 1 of 3 linear layers of mine (gaussian, bf16)",
        "forward, 2 of 3 linear layers of mine (gaussian, bf16)",
    ]
    older = layer(64, [use("64x64", 1, "mine", 3, True)], times) + layer(
        128, [use("128x128", 2, "mine", 16, True)], times
    )
    assert len(model_lines(run_of(older))) == 2, "of versions that say no more, by how many there are"


@pytest.mark.parametrize("layers", [[{"model": "toy"}], [], "toy", [use("q", 0)]])
def test_layers_that_are_none_make_a_row_unfit(layers: object) -> None:
    assert unfit(timed("dense_single", 64, 4, 1.0) | {"layers": layers}) == "layers"
