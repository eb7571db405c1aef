"""What a report makes of results that are wrong, stale or the same by another name: each is planted, and found."""

from __future__ import annotations

import math
from typing import Any

import pytest
from inner_pytest import ROOT
from rows import Info, checked, run_of, stepped, timed, verdict

from blockshock.report.answer import answer, verdict_table
from blockshock.report.comparison import comparison
from blockshock.report.limits import limit_lines
from blockshock.report.points import every_row
from blockshock.report.run_tables import run_tables
from blockshock.report.tables import Table
from blockshock.saved.judged import discredited, faults, fresh
from blockshock.saved.results import Run, read_run

GATHERED = "block_shock gathered 1100"
OURS = "block_shock cusparselt 1100"
LOSS = {
    "error_ratio": 1.0,
    "relative_error": 1e-3,
    "dense_relative_error": 1e-3,
    "max_error": 1e-2,
    "mean_error": 1e-3,
    "of_bound": 0.5,
}
TRAINED = {"worst_weight_share": 0.5, "steps": 2, "losses": [1.0, 0.5], "weight_distance": [0.1], "weight_limit": [0.2]}
DRIFT = {"worst_drift": 1.5, "ratio": [1.0, 1.5], "relative_error": [1e-3], "steps": 2}
EACH_STEP = {"max_error": [1.0], "dense_relative_error": [0.1]}


def right(run: Run) -> list[str]:
    """How many are right, and what is wrong."""
    lines = answer(run)
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert lines[: len(wrong)] == wrong, "it begins with them"
    return [lines[len(wrong)].rpartition(" · ")[2], *wrong]


@pytest.mark.parametrize(
    "planted",
    [
        {"error_ratio": 2.1},
        {"error_ratio": math.nan},
        {"error_ratio": 2.5, "error_ratio_limit": 2.4},
        {"error_ratio": 50, "error_ratio_limit": 1e9},
        {"error_ratio_limit": 1e9},
        {"error_ratio_limit": math.inf},
        {"error_ratio_limit": math.nan},
        {"relative_error": 1.0},
        {"relative_error": math.nan},
        {"dense_relative_error": 1.0},
        {"dense_relative_error": 0.0},
        {"max_error": math.inf},
        {"max_error": math.nan},
        {"of_bound": 1.01},
        {"of_bound": math.nan},
        {"same_on_ranks": False},
        {"same_again": False},
        {"status": "wrong"},
        {"losses": {"sum": LOSS, "mse": LOSS | {"of_bound": 1.5}}},
        {"losses": {"sum": LOSS, "mse": LOSS | {"error_ratio": math.nan}}},
        {"losses": {"sum": LOSS, "mse": LOSS | {"error_ratio_limit": 1e9}}},
        {"losses": {"sum": LOSS, "mse": LOSS | {"relative_error": 1.0}}},
        {"losses": {"sum": LOSS, "mse": LOSS | {"max_error": math.inf}}},
    ],
    ids=str,
)
def test_each_thing_that_can_be_wrong_is_counted_by_itself(planted: Info) -> None:
    others = [checked(OURS), checked(OURS, 128, status="right", error_ratio=2.5, error_ratio_limit=2.6)]
    assert right(run_of([checked("dense_single"), *others])) == ["3 results, 3 checked: all right"]
    wrong = checked("dense_single", 128, **planted)
    why = faults(run_of([wrong]).infos[0])[0]
    assert right(run_of([*others, wrong])) == [
        "3 results, 3 checked: 1 WRONG",
        f"WRONG: dense_single in 1 of 1 check, at gaussian 128×128 B=4 bf16: {why}",
    ]


@pytest.mark.parametrize(
    "planted",
    [
        TRAINED | {"worst_weight_share": 1.2},
        TRAINED | {"worst_weight_share": math.nan},
        TRAINED | {"weight_distance": [math.nan]},
        TRAINED | {"loss_distance": [0.3], "loss_limit": [0.2]},
        TRAINED | {"losses": [1.0, 0.95]},
        TRAINED | {"status": "wrong"},
        TRAINED | {"promise": "learns", "mask_faults": ["step 3: the mask is not 2:4"]},
        DRIFT | {"worst_drift": 2.0, "ratio": [1.0, 2.0]},
        DRIFT | {"ratio": [1.0, math.nan]},
        DRIFT | {"relative_error": [1e-3, 1.0], "dense_relative_error": [1e-3, 1e-3]},
        DRIFT | {"max_error": [1e-3, math.inf]},
    ],
    ids=str,
)
def test_long_runs_that_go_astray_are_named(planted: Info) -> None:
    assert faults(timed(OURS, 64, 4, 1.0) | TRAINED) == faults(timed(OURS, 64, 4, 1.0) | DRIFT) == []
    astray = {name: value for name, value in checked(OURS).items() if name not in LOSS} | planted
    told = right(run_of([checked("dense_single"), astray | {"phase": 3}]))
    assert told[0] == "2 results, 2 checked: 1 WRONG"
    assert [line.partition(", at ")[0] for line in told[1:]] == [f"WRONG: {OURS} in 1 of 1 check"]


def test_a_recipe_is_told_by_its_own_definition() -> None:
    trained: Info = {"phase": 3, "optimizer": "adamw", **TRAINED}
    numbers = [{name: value for name, value in checked(OURS).items() if name not in LOSS} | trained for _ in range(2)]
    numbers[1] |= {"promise": "learns", "worst_weight_share": 0.75}
    run = run_of(numbers)
    assert [table.notes[0].partition(", ")[0] for table in comparison(run.records)] == [
        "farthest off: 0.50 of what passes from the dense run",
        "farthest off: 0.75 of what passes from what its recipe says",
    ]
    assert faults(numbers[1] | {"worst_weight_share": 2.0}) == ["it is not what its recipe says"]


def of_wrong_kernel() -> Run:
    """cusparselt is wrong at one of two points, and the fastest at all of three; so is a dense way."""
    rows = [checked(OURS, error_ratio=1e3), checked(OURS, 128), checked(GATHERED)]
    rows += [checked("dense_tp_col", of_bound=7.0), checked("dense_single")]
    for N in (64, 128, 256):
        for label, ms in (
            (OURS, 1.0),
            ("dense_tp_col", 1.5),
            (GATHERED, 2.0),
            ("dense_single", 4.0),
        ):
            rows.append(timed(label, N, 4, ms))
    rows += [timed(OURS, 64, 8, 1.0, dtype="fp16"), timed("dense_single", 64, 8, 4.0, dtype="fp16")]
    rows += [
        verdict(OURS),
        verdict(GATHERED),
        verdict(GATHERED, rival="dense_tp_col"),
    ]
    return run_of(rows)


def found(run: Run) -> dict[str, Table]:
    return {table.title.partition(":")[0]: table for table in run_tables(run)}


def test_a_wrong_row_is_marked_in_every_later_table_and_says_at_how_many_points_it_failed() -> None:
    run = of_wrong_kernel()
    why = "its output is wrong at 1 of 2 points that were checked: its error is 1e+03 × the dense product's"
    note = f"‡ {OURS} bf16: {why}"
    for title in ("Time over the best dense", "Time by stage, ms", "Memory of the fullest rank, MiB"):
        table = found(run)[title]
        labels = [row[5] for row in table.rows]
        assert labels.count(f"{OURS} ‡") == labels.count("dense_tp_col ‡") == 3
        assert labels.count(GATHERED) == 3
        assert labels.count(OURS) == 1, "in fp16 nothing was found wrong"
        assert note in table.notes
    by_point = [table for table in comparison(run.records) if table.title.startswith("phase 1")]
    assert next(row[0] for row in by_point[0].rows) == f"{OURS} ‡"
    assert note in by_point[0].notes


def test_what_is_wrong_is_neither_the_fastest_nor_the_best_rival() -> None:
    run = of_wrong_kernel()
    told = [line for line in answer(run) if ", forward" in line]
    assert [line.partition(". ")[0] for line in told] == [
        f"{GATHERED}, forward, bf16 (N 64–256, B 4): pays at all 3 points",
        f"{OURS}, forward, fp16 (N 64, B 8): pays at the one point",
    ]
    assert "Time ÷ best dense (dense_single): 0.50. " in told[0]
    speeds = [row for row in found(run)["Time over the best dense"].rows if row[4] == "bf16"]
    assert {row[9] for row in speeds} == {"dense_single"}
    assert list(limit_lines([run_of([timed(OURS, 8192, 256, 1.0)]).infos[0] | {"wrong": "so it is"}])) == []


def test_what_was_picked_otherwise_is_not_wrong_with_it() -> None:
    picks = [{"kernel": kernel, "pruner": pruner} for kernel in "ab" for pruner in ("one", "other")]
    rows = [timed(f"pruned {pick['kernel']} {pick['pruner']}", 64, 4, 1.0, picks=pick, mask=None) for pick in picks]
    trained = stepped("pruned a one x", 64, 4, 1.0, picks=picks[0] | {"storage": "x"}, mask=None)
    wrong = checked("pruned a one", error_ratio=1e3, picks=picks[0], mask=None)
    reasons = discredited([wrong, *rows, trained])
    assert [reason is not None for reason in reasons] == [True, True, False, False, False, True]


def test_verdicts_on_what_is_wrong_or_against_it_do_not_count() -> None:
    run = of_wrong_kernel()
    asked = verdict_table(run)
    assert asked is not None
    assert asked.rows == [("it is faster", "block_shock", "yes", "1", "0.90", "dense_tp_row")]
    assert asked.notes[1:] == ["2 left out, whose output is wrong"]
    (table,) = [table for table in comparison(run.records) if table.section == "verdicts"]
    assert [row[-1] for row in table.rows] == ["faster ‡§", "faster §", "faster ‡§"]
    assert "‡ block_shock gathered 1100 bf16: its rival's output is wrong" in table.notes


def test_a_wrong_training_run_discredits_its_own_steps_alone() -> None:
    kept, masked = "block_shock gathered 1100 compressed", "block_shock gathered 1100 masked"
    astray = {"phase": 3, "optimizer": "sgd", "worst_weight_share": 3.0, "steps": 50}
    wrong = stepped(kept, 64, 4, 1.0) | astray
    steps = [stepped(kept, 64, 4, 1.0), stepped(kept, 64, 4, 1.0, optimizer="adamw"), stepped(masked, 64, 4, 1.0)]
    forward, judged = timed(GATHERED, 64, 4, 1.0), verdict(kept, optimizer="sgd")
    reasons = discredited([wrong, *steps, forward, judged])
    assert [reason is None for reason in reasons] == [False, False, True, True, True, False]


def test_a_layer_that_drifts_is_marked_itself() -> None:
    drifts = checked("dense_single", worst_drift=9.0, ratio=[9.0], relative_error=[1.0], steps=1, **EACH_STEP)
    run = run_of([drifts, timed("dense_single", 64, 4, 1.0)])
    assert [bool(info.get("wrong")) for info in run.infos] == [True, False]


@pytest.mark.parametrize(
    ("storage", "is_fresh"),
    [
        *((None, True), ("compressed", True), ("masked", True), ("masked:every=1", True)),
        *(("masked:every=0", False), ("masked:every=10", False), ("masked:every=never", False)),
    ],
)
def test_stale_is_what_its_cadence_says(storage: str | None, is_fresh: bool) -> None:
    assert fresh({"storage": storage}) == is_fresh


def test_masked_and_masked_at_every_step_are_one_row_and_the_fastest_may_be_it() -> None:
    rows: list[Any] = [stepped("dense_single", 64, 4, 2.0)]
    rows += [stepped(f"block_shock gathered 1100 masked:every={n}", 64, 4, ms) for n, ms in ((1, 1.5), (10, 1.0))]
    run = run_of(rows)
    assert [info["label"] for info in run.infos][1:] == [
        "block_shock gathered 1100 masked",
        "block_shock gathered 1100 masked:every=10",
    ]
    assert "Time ÷ best dense (dense_single): 0.75. " in answer(run)[1]
    assert rows[1]["label"].endswith("masked:every=1"), "what was saved is not touched"


def test_masked_beside_masked_at_every_step_stay_two_rows_each_with_its_ratio() -> None:
    rows = [stepped("dense_single", 64, 4, 1.0, role="rival")]
    rows += [
        stepped(f"block_shock gathered 1100 {storage}", 64, 4, ms)
        for storage, ms in (("masked", 3.0), ("masked:every=1", 4.0))
    ]
    found = every_row(run_of(rows).infos)
    assert {row.label.split()[-1]: row.ratio for row in found.values()} == {
        "dense_single": 1.0,
        "masked": 3.0,
        "masked:every=1": 4.0,
    }


def test_no_official_run_holds_anything_that_is_wrong() -> None:
    official = ROOT / "benchmark_results" / "official"
    for path in sorted(official.iterdir()):
        assert [info["label"] for info in read_run(path).infos if info.get("wrong")] == []
