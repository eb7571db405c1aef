"""What weights of their own lose stands beside times and verdicts, is ranked, drawn, and said in the answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rows import Info, checked, run_of, saved, stepped, tables, timed, verdict

from blockshock.report import screen
from blockshock.report.answer import answer
from blockshock.report.asked import verdict_table
from blockshock.report.comparison import comparison
from blockshock.report.losing import lost
from blockshock.report.within import within_lines
from blockshock.saved.results import read_run

KERNELS, ERRORS = ("auto", "gathered"), {"random": 0.7, "magnitude": 0.3}


def of(kernel: str, pruner: str, storage: str | None = None) -> Info:
    picks = {"kernel": kernel, "pruner": pruner} | ({"storage": storage} if storage else {})
    return {"role": "subject", "span": "one", "promise": "own weights", "mask": None, "picks": picks, "pruner": pruner}


def quality(error: float) -> Info:
    return {"output_error": error, "kept_magnitude": 1 - error / 2, "kept_energy": 1 - error / 4}


def rows() -> list[Info]:
    found = [timed("dense_single", N, 4, 2.0) for N in (64, 128)]
    for kernel in KERNELS:
        for pruner, error in ERRORS.items():
            label, picked = f"pruned {kernel} {pruner}", of(kernel, pruner)
            found += [timed(label, N, 4, 1.0, **picked) for N in (64, 128)]
            # Found at two B: of these the larger counts. At N = 128 nothing was checked.
            found += [checked(label, 64, B, quality=quality(error + 0.001 * (B == 2)), **picked) for B in (8, 2)]
            found += [verdict(label, 64, rival="dense_single", hypothesis="H6", **picked)]
    trained = of("auto", "magnitude", "masked")
    return [*found, stepped("dense_single", 64, 4, 2.0), stepped("pruned auto magnitude masked", 64, 4, 1.0, **trained)]


def test_it_stands_beside_the_times_and_the_verdicts_of_the_same_layer() -> None:
    found = {(table.section, table.title): table for table in comparison(run_of(rows()).records)}
    for section, title in (("forward", "phase 1 N=64"), ("training", "phase 3 N=64"), ("verdicts", "H6")):
        (table,) = [table for key, table in found.items() if key[0] == section and key[1].startswith(title)]
        place = [column.name for column in table.columns].index("loses")
        shown = [(row[0] if section != "verdicts" else "", row[place]) for row in table.rows]
        if section == "forward":
            assert sorted(shown, key=str) == [
                ("dense_single", None),
                *(
                    (f"pruned {kernel} {pruner}", error)
                    for kernel in KERNELS
                    for pruner, error in sorted(ERRORS.items())
                ),
            ]
        else:
            assert {error for _, error in shown} == ({None, 0.3} if section == "training" else {0.3, 0.7})
    (unchecked,) = [table for key, table in found.items() if key[1].startswith("phase 1 N=128")]
    assert "loses" not in [column.name for column in unchecked.columns]
    speeds = tables([row for row in rows() if row["phase"] < 3])["Time over the best dense"]
    assert {row[5]: row[-1] for row in speeds.rows if row[1] == 64}["pruned auto random"] == 0.7


def test_a_run_without_weights_of_their_own_has_no_column_for_it() -> None:
    infos = [timed("dense_single", 64, 4, 2.0), timed("block_shock auto", 64, 4, 1.0), verdict("block_shock auto")]
    assert all(column.name != "loses" for table in comparison(run_of(infos).records) for column in table.columns)
    assert "What weights of their own lose" not in tables(infos)
    assert not any("loses" in line.lower() for line in answer(run_of(infos)))


def test_what_was_asked_is_answered_with_the_loss_beside_the_speed() -> None:
    pair = verdict("block_shock gathered 1100", 64, ratio=0.7, rival="dense_tp_row")
    run = run_of([*rows(), pair])
    table = verdict_table(run)
    assert table is not None
    place = [column.name for column in table.columns].index("loses")
    told = {row[1]: row[place] for row in table.rows}
    assert told == {"pruned": "0.30 of the output", "block_shock": None}
    narrow = " ".join(" ".join(screen.of_run(run, "", "", width=80)).split())
    assert "(÷ dense_single: 0.90; loses 0.30 of the output; points: 1, the fastest of 4 rows)" in narrow
    assert "(÷ dense_tp_row: 0.70; points: 1)" in narrow
    of_halves = verdict_table(run_of([pair]))
    assert of_halves is not None
    assert "loses" not in [column.name for column in of_halves.columns]


def test_the_least_lossy_come_first_in_the_table_and_in_the_answer() -> None:
    table = tables(rows())["What weights of their own lose"]
    assert [row[5] for row in table.rows] == [
        f"pruned {kernel} {pruner}" for pruner in ("magnitude", "random") for kernel in KERNELS
    ]
    assert table.texts()[0][3:] == ["8", "bf16", "pruned auto magnitude", "0.300", "0.850", "0.925"]
    forward, step = answer(run_of(rows()))[1:]
    assert forward.startswith("pruned auto magnitude, ")
    assert "Loses 0.300 of the output before retraining. " in forward, "of the row that is named, and of no other"
    assert "Loses 0.300 of the output before retraining. " in step


def test_small_layers_beside_the_grid_are_not_counted_where_anything_was_timed() -> None:
    small = checked("pruned auto magnitude", 32, quality=quality(0.9), **of("auto", "magnitude"))
    assert answer(run_of([small, *rows()]))[1:] == answer(run_of(rows()))[1:]
    assert answer(run_of([small]))[-1] == "pruned loses 0.900 of the output before retraining"


def test_of_an_even_number_of_layers_the_median_lies_between_the_two_in_the_middle() -> None:
    def told(*errors: float) -> str:
        return lost([{"loses": quality(error), "picks": {"pruner": "magnitude"}} for error in errors])

    assert told(0.1, 0.5) == "0.300 of the output before retraining"
    assert told(0.9, 0.1, 0.3, 0.2) == "0.250 of the output before retraining"
    assert told(0.1, float("nan")) == "an unknown part of the output before retraining"


def test_what_is_not_a_number_is_the_worst() -> None:
    broken = checked("pruned auto broken", B=8, quality=quality(float("nan")), **of("auto", "broken"))
    infos = [broken, timed("pruned auto broken", 64, 4, 1.0, **of("auto", "broken")), *rows()]
    assert tables(infos)["What weights of their own lose"].rows[-1][5] == "pruned auto broken"
    told = "0.300 (magnitude), an unknown part (broken) of the output before retraining. "
    assert told in answer(run_of(infos))[1]
    assert "Loses an unknown part of the output before retraining. " in answer(run_of([*infos[:2], *rows()[:2]]))[1]


def test_what_has_no_parts_to_lose_is_a_dash_and_nothing_that_is_named_within_a_loss() -> None:
    nothing = dict.fromkeys(quality(0.0), math.nan)
    picked = of("auto", "magnitude")
    own = [timed("pruned auto magnitude", 64, 4, 1.0, **picked)]
    own += [checked("pruned auto magnitude", quality=nothing, **picked)]
    own += [verdict("pruned auto magnitude", rival="dense_single", hypothesis="H6", **picked)]
    run = run_of([timed("dense_single", 64, 4, 2.0), *own])
    shown = tables(run.infos)["What weights of their own lose"].texts()
    assert shown[0][-3:] == ["–"] * 3
    for table in comparison(run.records):
        names = [column.name for column in table.columns]
        assert "loses" not in names or {row[names.index("loses")] for row in table.texts()} == {"–"}
    summary = verdict_table(run)
    assert summary is not None
    assert "loses" not in [column.name for column in summary.columns]
    assert "Loses an unknown part of the output" in answer(run)[1]
    assert not list(within_lines(run, 0.5))


def test_what_a_first_half_loses_is_a_row_of_its_mask_and_no_loss_of_the_whole() -> None:
    """One for both kernels, of the most rows of X."""
    halves = [
        checked(f"block_shock {kernel} {mask}", 64, B, quality_of_half=quality(error + 0.01 * (B == 2)))
        for kernel in KERNELS
        for mask, error in (("1100", 0.7), ("wanda", 0.2))
        for B in (2, 8)
    ]
    infos = [*rows(), *halves, timed("block_shock auto wanda", 64, 4, 1.0)]
    shown = {row[5]: row[6] for row in tables(infos)["What weights of their own lose"].rows if row[1] == 64}
    assert shown["first half alone, wanda"] == 0.2
    assert shown["first half alone, 1100"] == 0.7
    assert len(shown) == 6
    assert "loses" not in run_of(infos).infos[-1]


def test_quality_that_is_damaged_leaves_its_row_out_and_what_a_file_says_of_others_is_not_believed(
    tmp_path: Path,
) -> None:
    good, *others = rows()
    infos = [good | {"loses": quality(0.5)}, *others, checked("pruned", 64, 4, quality={"output_error": "x"})]
    infos.append(checked("block_shock", 64, 4, quality_of_half={"output_error": "x"}))
    (tmp_path / "run.json").write_text(json.dumps(saved(infos)))
    run = read_run(tmp_path / "run.json")
    assert run.left_out == {"quality": 1, "quality_of_half": 1}
    assert "loses" not in run.infos[0]
