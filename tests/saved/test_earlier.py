"""Rows of older files say what newer ones save, and no more than they lack."""

from __future__ import annotations

import pytest
from rows import timed, verdict

from blockshock.methods import METHODS
from blockshock.saved.earlier import ROLES, completed
from blockshock.saved.judged import best_dense, is_alone, was_checked


@pytest.mark.parametrize("name", [*ROLES, "block_shock"])
def test_older_rows_say_of_a_method_what_it_says_of_itself(name: str) -> None:
    kind, row = METHODS.get(name), completed(timed(name, 64, 4, 1.0))
    assert [row["role"], row["span"], row["promise"]] == [kind.role, kind.span, kind.promise]
    rival = completed(verdict("block_shock gathered 1100", rival=f"{name} 1100"))
    assert [rival["rival_role"], rival["rival_span"]] == [kind.role, kind.span]


def test_what_was_picked_is_what_the_row_says() -> None:
    row = completed(timed("block_shock gathered 1100 masked", 64, 4, 1.0))
    assert row["picks"] == {"kernel": "gathered", "mask": "1100", "storage": "masked"}
    assert completed(timed("dense_single", 64, 4, 1.0))["picks"] == {}


def test_what_a_row_says_itself_stays() -> None:
    said = {"role": "ablation", "span": "one", "promise": "learns", "picks": {"pruner": "mine"}}
    row = timed("dense_tp_row", 64, 4, 1.0, **said)
    assert completed(row) == row


def test_one_device_is_set_beside_one_device_and_the_group_beside_all() -> None:
    told = {"pruned": {"span": "one", "promise": "own weights"}, "torch": {"span": "one", "promise": "own weights"}}
    told["torch"]["role"] = "rival"
    times = {"dense_single": 4.0, "dense_tp_row": 2.0, "pruned": 1.0, "block_shock": 3.0, "torch": 0.5}
    rows = [completed(timed(name, 64, 4, ms, **told.get(name, {}))) for name, ms in times.items()]
    alone = {row["label"]: is_alone(row) for row in rows}
    assert alone == {**dict.fromkeys(times, False), "pruned": True, "torch": True}
    best = {row["label"]: (best_dense(rows, row) or {}).get("label") for row in rows}
    assert best == {**dict.fromkeys(times, "dense_tp_row"), "pruned": "dense_single", "torch": "dense_single"}
    assert (best_dense(rows) or {})["label"] == "dense_tp_row", "one that prunes is no dense alternative"
    assert best_dense(rows[1:2], rows[2]) is None


def test_what_was_only_measured_is_not_counted_among_what_was_checked() -> None:
    for told in {}, {"status": "measured"}:
        assert not was_checked(timed("dense_single", 64, 4, 1.0, **told))
    for told in {"status": "right"}, {"status": "wrong"}, {"status": "measured", "error_ratio": 1.0}:
        assert was_checked(timed("dense_single", 64, 4, 1.0, **told))
