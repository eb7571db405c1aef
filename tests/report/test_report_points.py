"""One number for one point: the paired one where there is one, against the best dense alternative there."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from inner_pytest import ROOT
from rows import Info, checked, run_of, stepped, timed, verdict

from blockshock.report.answer import answer
from blockshock.report.comparison import comparison
from blockshock.report.fastest import against_best
from blockshock.report.plots.heat import heat
from blockshock.report.points import Against, best_names, every_row
from blockshock.report.run_tables import run_tables
from blockshock.saved import is_alone, read_run

OFFICIAL = sorted((ROOT / "benchmark_results" / "official").iterdir())

OURS, SLOW = "block_shock gathered 1100", "block_shock cusparselt 1100"
DENSE = {"dense_tp_row": 2.0, "dense_tp_col": 1.0, "dense_single": 4.0}
RIVALS: Info = {"rivals": {"dense_tp_row": 2.0, "dense_tp_col": 1.0}}


def at(N: int, ms: float, label: str = OURS) -> list[Info]:
    return [timed(label, N, 4, ms), *(timed(rival, N, 4, theirs) for rival, theirs in DENSE.items())]


def only(infos: list[Info]) -> Against:
    (found,) = against_best(run_of(infos))
    return found


def test_without_a_pair_it_is_the_ratio_of_medians() -> None:
    found = only(at(64, 0.9))
    assert (found.ratio, found.rival, found.label, found.section) == (0.9, "dense_tp_col", OURS, "forward")
    assert (found.low, found.high, found.verdict) == (None, None, None)


def test_the_pair_that_looked_for_the_best_one_is_the_number() -> None:
    """Its rival may be another one than the medians of the grid say, for it was looked for again."""
    pairs = [
        verdict(OURS, 64, ratio=0.4, hypothesis="H4", rival="dense_single"),
        verdict(OURS, 64, ratio=1.1, rival="dense_tp_row", verdict="slower", **RIVALS),
        verdict(OURS, 64, ratio=0.7, rival="dense_tp_col"),
    ]
    found = only(at(64, 0.9) + pairs)
    assert (found.ratio, found.rival, found.verdict) == (1.1, "dense_tp_row", "slower")
    assert (found.low, found.high) == (0.98 * 1.1, 1.02 * 1.1)


def test_a_pair_with_the_rival_that_is_the_best_one_counts_and_no_other() -> None:
    best, other = verdict(OURS, 64, ratio=0.7, rival="dense_tp_col"), verdict(OURS, 64, ratio=0.4, rival="dense_single")
    assert only([*at(64, 0.9), best, other]).ratio == 0.7
    assert only([*at(64, 0.9), other]).ratio == 0.9


def test_the_best_of_some_that_leave_out_the_best_of_all_is_not_it() -> None:
    on_one = verdict(OURS, 64, ratio=0.4, rival="dense_single", rivals={"dense_single": 4.0, "other": 5.0})
    assert only([*at(64, 0.9), on_one]).ratio == 0.9


def test_of_verdicts_alone_the_rival_that_is_hardest_to_beat_counts() -> None:
    pairs = [verdict(OURS, 64, ratio=ratio, rival=rival) for rival, ratio in (("dense_single", 0.5), ("dense_tp", 1.2))]
    found = only([pairs[0], pairs[1] | {"rival_role": "rival"}])
    assert (found.ratio, found.rival) == (1.2, "dense_tp")
    assert against_best(run_of([verdict(OURS, 64, rival="masked_split_dense 1100")])) == []


def test_of_a_method_the_fastest_row_counts_by_its_own_number() -> None:
    slower = verdict(OURS, 64, ratio=1.3, rival="dense_tp_col", verdict="slower")
    assert only([*at(64, 0.9), timed(SLOW, 64, 4, 1.2), slower]).label == SLOW
    assert only([*at(64, 0.9), timed(SLOW, 64, 4, 1.2)]).label == OURS


@pytest.mark.parametrize("fault", [{"error_ratio": 1e9}, {"same_again": False}])
def test_what_is_wrong_is_no_number_and_no_rival(fault: Info) -> None:
    assert against_best(run_of([*at(64, 0.9), checked(OURS, **fault)])) == []
    assert only([*at(64, 0.9), checked("dense_tp_col", **fault)]).rival == "dense_tp_row"


def test_sections_points_and_optimizers_are_kept_apart() -> None:
    steps = [stepped(f"{OURS} compressed", 64, 4, ms, optimizer=name) for name, ms in (("sgd", 1.0), ("adamw", 3.0))]
    dense = [stepped("dense_tp_row", 64, 4, 2.0, optimizer=name) for name in ("sgd", "adamw")]
    ratios = {
        (one.section, one.N, one.optimizer): one.ratio
        for one in against_best(run_of([*at(64, 0.9), *at(128, 2.0), *steps, *dense]))
    }
    assert ratios == {
        ("forward", 64, None): 0.9,
        ("forward", 128, None): 2.0,
        ("training", 64, "sgd"): 0.5,
        ("training", 64, "adamw"): 1.5,
    }


def test_a_ratio_of_ratios_is_no_number_of_a_point() -> None:
    both = verdict(OURS, 64, ratio=0.4, rival="dense_tp_col", optimizer="sgd", **RIVALS)
    assert only([*at(64, 0.9), both]).ratio == 0.9


def test_a_point_has_one_best_dense_alternative_for_all_its_rows() -> None:
    """The one that a pair looked for and found, for rows that were not paired and for the dense ones too."""
    looked = verdict(OURS, 64, ratio=1.1, rival="dense_tp_row", verdict="slower", **RIVALS)
    other = verdict(SLOW, 64, ratio=1.3, rival="dense_tp_col", verdict="slower")
    alone: Info = {"span": "one", "promise": "own weights"}
    infos = [*at(64, 0.9), timed(SLOW, 64, 4, 1.5), timed("pruned auto", 64, 4, 1.0, **alone)]
    infos = [info | ({"span": "one"} if info["label"] == "dense_single" else {}) for info in infos]
    run = run_of([*infos, looked, other])
    found = {row.label: (row.rival, row.ratio) for row in every_row(run.infos).values()}
    tp = "dense_tp_row"
    assert found == {
        OURS: (tp, 1.1),
        SLOW: (tp, 0.75),
        "pruned auto": ("dense_single", 0.25),
        tp: (tp, 1.0),
        "dense_tp_col": (tp, 0.5),
        "dense_single": (tp, 2.0),
    }
    (speeds, *_) = run_tables(run)
    names = [column.name for column in speeds.columns]
    told = {row[names.index("method")]: row[names.index("best dense")] for row in speeds.rows}
    assert told == {label: rival for label, (rival, _) in found.items()}
    assert speeds.notes[-1].endswith("for a row on one device of those on one")
    (each,) = (table for table in comparison(run.records) if table.section == "forward")
    assert each.notes[0] == "best dense: dense_tp_row, on one device dense_single"


def in_few_bits(label: str, ms: float) -> Info:
    """A dense alternative in a format."""
    return timed(label, 64, 4, ms, picks={"format": "int8"}, promise="own weights")


def test_without_a_dense_alternative_in_its_own_dtype_none_is_the_best() -> None:
    ours, others = timed(OURS, 64, 4, 0.9), [timed("dtensor_row", 64, 4, 5.0), in_few_bits("dense_tp_col int8", 0.8)]
    assert against_best(run_of([ours, *others])) == []
    assert only([ours, *others, timed("dense_tp_col", 64, 4, 1.0)]).rival == "dense_tp_col"
    alone: Info = {"span": "one", "promise": "own weights"}
    single, pruned = timed("dense_single", 64, 4, 4.0), timed("pruned auto", 64, 4, 1.0, **alone)
    assert only([pruned, single, *others]).rival == "dense_single", "of a group that one is no rival"
    looked = verdict(OURS, 64, ratio=1.1, rival="dense_tp_row", verdict="slower", **RIVALS)
    assert only([ours, *others, looked]).rival == "dense_tp_row", "pairs look for it among all"
    assert against_best(run_of([ours, *others, looked | {"rivals": {}}])) == []


def test_a_pair_with_a_dense_alternative_in_a_format_says_nothing_of_the_best() -> None:
    few: Info = {"span": "one", "promise": "own weights", "picks": {"kernel": "auto", "format": "int8"}}
    pair = verdict("pruned auto int8", 64, hypothesis="H7", rival="dense_single int8", rival_role="rival", **few)
    for more in {}, {"rival_promise": "own weights"}:
        assert against_best(run_of([pair | more])) == []
    assert only([pair | {"rival": "dense_single"}]).rival == "dense_single"


def test_of_several_that_pairs_found_the_one_of_the_most_counts() -> None:
    pairs = [
        verdict(f"block_shock auto mask{number}", 64, ratio=0.9, rival=rival, **RIVALS)
        for number, rival in enumerate(("dense_tp_row", "dense_tp_row", "dense_tp_col"))
    ]
    slow = [timed(f"block_shock auto mask{number}", 64, 4, 1.0) for number in range(3)]
    found = {row.label: row for row in every_row(run_of([*at(64, 0.9), *slow, *pairs]).infos).values()}
    assert {row.rival for row in found.values()} == {"dense_tp_row"}
    assert [found[f"block_shock auto mask{number}"].ratio for number in range(3)] == [0.9, 0.9, 0.5]
    even = {row.rival for row in every_row(run_of([*at(64, 0.9), *slow, *pairs[1:]]).infos).values()}
    assert even == {"dense_tp_col"}, "of as many the one that the medians say"


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_no_official_run_has_two_names_for_a_point(path: Path) -> None:
    infos = read_run(path).infos
    alone = {info["label"]: is_alone(info) for info in infos}
    names: dict[object, set[str]] = defaultdict(set)
    for row in every_row(infos).values():
        names[row.place, alone[row.label]].add(row.rival)
    assert [found for found in names.values() if len(found) > 1] == []
    assert {at: {name} for at, name in best_names(infos).items() if at in names} == names


def test_medians_of_builds_that_scatter_decide_nothing_within_that() -> None:
    steady, unsteady = ({"builds_p50_ms": [0.5 - off, 0.5 + off]} for off in (0.01, 0.3))
    dense = timed("dense_tp_row", 64, 4, 1.0, builds_p50_ms=[0.99, 1.01], role="rival", promise="dense", span="group")
    for builds, says in ((steady, "pays"), (unsteady, "undecided")):
        _, use = answer(run_of([timed(OURS, 64, 4, 0.5, **builds), dense]))
        assert use.startswith(f"{OURS}, forward: {says}")
        assert use.endswith("Not paired: undecided within 3% or their builds' scatter")


def test_what_launching_costs_is_said_beside_what_graphs_take() -> None:
    rows = [timed(OURS, 64, B, 0.5, cuda_events_p50_ms=eager) for B, eager in ((4, 3.0), (8, 1.0))]
    rows += [timed("dense_tp_row", 64, B, 1.0, cuda_events_p50_ms=2.0, role="rival") for B in (4, 8)]
    ran, use = answer(run_of(rows))
    assert ", CUDA graphs, " in ran
    assert ": 0.50. Eager, launch included: 1.00, 0.50–1.50. " in use


def test_each_recipe_is_told_by_itself_and_its_control_is_not() -> None:
    told: Info = {"method": "recipe", "promise": "learns", "span": "one"}
    times = {"recipe dense": 0.95, "recipe fst": 0.8, "recipe s_ste": 1.3}
    roles = {"recipe dense": "ablation"}
    steps = [
        stepped(label, N, 4, N * ms, **told, role=roles.get(label, "subject"))
        for label, ms in times.items()
        for N in (64, 128)
    ]
    dense = [stepped("dense_single", N, 4, float(N)) for N in (64, 128)]
    lines = [line.partition(". ")[0] for line in answer(run_of([*steps, *dense])) if line.startswith("recipe")]
    assert lines == ["recipe fst, training step: pays at all 2 points", "recipe s_ste, training step: does not pay"]
    figure = heat(against_best(run_of([*steps, *dense])))
    assert figure is not None
    assert len(figure.panels) == 2, "one for each"
