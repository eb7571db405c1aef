"""A report goes by what rows say that they are: it names no method and no hypothesis of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rows import Info, run_of, tables, timed

import blockshock
from blockshock.methods import AXES, METHODS
from blockshock.phases.hypotheses import HYPOTHESES
from blockshock.report.answer import answer
from blockshock.report.comparison import comparison
from blockshock.saved.results import Run

ROOT = Path(blockshock.__file__).parent
OURS, PRUNED, RANDOM = "block_shock gathered 1100", "pruned auto magnitude", "pruned auto random"
OF_ONE: Info = {"role": "subject", "span": "one", "promise": "own weights", "mask": None}
TIMES = {"dense_tp_row": 2.0, "dense_tp_col": 1.0, "dense_single": 4.0, OURS: 3.0}


def pruned(pruner: str) -> Info:
    return OF_ONE | {"picks": {"kernel": "auto", "pruner": pruner}, "ranks": 1}


def of_two_subjects() -> Run:
    rows = [timed(label, N, 4, ms) for N in (64, 128) for label, ms in TIMES.items()]
    rows += [timed(PRUNED, N, 4, ms, **pruned("magnitude")) for N, ms in ((64, 3.0), (128, 2.0))]
    rows += [timed("theirs", N, 4, 1.5, **OF_ONE | {"role": "rival"}) for N in (64, 128)]
    return run_of(rows)


@pytest.mark.parametrize("wing", ["report", "saved"])
def test_what_shows_runs_names_no_method_and_no_hypothesis(wing: str) -> None:
    methods = set(METHODS.names()) - set(AXES.names())  # `recipe` is the name of a thing that rows pick, too
    names = re.compile(rf"\b({'|'.join((*methods, *HYPOTHESES.names()))})\b")
    named = {path.name: names.findall(path.read_text()) for path in (ROOT / wing).rglob("*.py")}
    assert {name for name, found in named.items() if found} == ({"earlier.py"} if wing == "saved" else set())


def test_each_subject_has_a_line_with_the_rivals_of_where_it_runs() -> None:
    rest = "Not paired: undecided within 3% or their builds' scatter"
    assert answer(of_two_subjects())[1:] == [
        f"{OURS}, forward: does not pay. Time ÷ best dense (dense_tp_col): 3.00. {rest}",
        f"{PRUNED}, forward: pays at all 2 points. Time ÷ best dense (dense_single): 0.62, 0.50–0.75. {rest}",
    ]


def test_tables_divide_by_the_best_of_where_a_row_runs() -> None:
    first, _ = comparison(of_two_subjects().records)
    over_best = {row[0]: row[3] for row in first.rows}
    assert over_best == {
        "dense_tp_col": 1.0,
        "theirs": 0.375,
        "dense_tp_row": 2.0,
        OURS: 3.0,
        PRUNED: 0.75,
        "dense_single": 4.0,
    }
    assert first.notes == ["best dense: dense_tp_col, on one device dense_single"]
    assert first.title.endswith("2 CUDA ranks, cuda_graph")
    speeds = tables([record["extra_info"] for record in of_two_subjects().records])["Time over the best dense"]
    assert {row[5]: row[9] for row in speeds.rows if row[1] == 64 and row[5] in (OURS, PRUNED)} == {
        OURS: "dense_tp_col",
        PRUNED: "dense_single",
    }
