"""Verdicts in a report: the words of old and new runs, ratios out of the samples, rivals, and intervals too wide."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import ROOT
from rows import Info, run_of, saved, verdict

from blockshock.__main__ import main
from blockshock.report.answer import answer, verdict_table
from blockshock.report.comparison import comparison
from blockshock.report.remarks import remarks
from blockshock.report.tables import Table
from blockshock.saved.pairs import ratio_of_pairs
from blockshock.saved.results import Run, read_run

OFFICIAL = ROOT / "benchmark_results" / "official"
OURS = "block_shock gathered 1100"
WORDS = {"faster", "slower", "tie", "undecided"}


def blocks(ratio: float, scatter: float = 0.001) -> dict[str, Any]:
    """Ten blocks of five rounds whose ratio of medians is about this."""
    changes = [1 + scatter * (number - 4.5) for number in range(10)]
    return {
        "first": [[1e-3 * ratio * change * more for more in (0.9, 1.0, 1.0, 1.1, 1.5)] for change in changes],
        "second": [[1e-3 * more for more in (0.8, 1.0, 1.0, 1.2, 2.0)] for _ in changes],
        "pilot": 10,
    }


def judged(found: dict[str, Any], **more: object) -> Info:
    """A verdict as a session saves it: what is said follows from the blocks."""
    ratio = ratio_of_pairs(found)
    said = {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high, "verdict": ratio.verdict()}
    return verdict(OURS, blocks=found, **said | more)


def table(run: Run) -> Table:
    (found,) = [table for table in comparison(run.records) if table.section == "verdicts"]
    return found


def table_rows(run: Run) -> list[Any]:
    """The last cells of all rows."""
    return [row[-1] for table in comparison(run.records) for row in table.rows]


def test_the_report_computes_ratio_and_interval_from_the_blocks() -> None:
    found = blocks(0.9)
    (info,) = run_of([judged({"forward": found})]).infos
    logs = [
        math.log(statistics.median(a) / statistics.median(b))
        for a, b in zip(found["first"], found["second"], strict=True)
    ]
    half = 2.262157 * statistics.stdev(logs) / math.sqrt(10)  # Student's t of 9 degrees of freedom
    mean = statistics.mean(logs)
    expected = [math.exp(mean), math.exp(mean - half), math.exp(mean + half)]
    assert [info[key] for key in ("ratio", "ratio_low", "ratio_high")] == pytest.approx(expected, rel=1e-5)
    assert (info["verdict"], "saved_as" in info) == ("faster", False)


@pytest.mark.parametrize(
    "planted",
    [
        {"ratio": 0.8},
        {"ratio_low": 0.5},
        {"ratio_high": 1.2},
        {"verdict": "faster"},
        {"verdict": "supported"},
        {"ratio": 0.8, "ratio_low": 0.7, "ratio_high": 0.9, "verdict": "faster"},
    ],
    ids=str,
)
def test_numbers_that_are_not_what_the_blocks_give_are_replaced_and_named(planted: Info, tmp_path: Path) -> None:
    good = judged({"forward": blocks(1.1)})
    (tmp_path / "run.json").write_text(json.dumps(saved([good, good | planted])))
    run = read_run(tmp_path / "run.json")
    keys = ("ratio", "ratio_low", "ratio_high", "verdict")
    assert [run.infos[1][key] for key in keys] == pytest.approx([good[key] for key in keys])
    assert run.infos[1]["verdict"] == "slower"
    assert [row[-1] for row in table(run).rows] == ["slower", "slower §"]
    (note,) = [note for note in table(run).notes if note.startswith("§")]
    assert f"its file says {planted.get('ratio', good['ratio']):.3f} (" in note
    assert f", {planted.get('verdict', 'slower')}: {OURS} N=64 K=64 B=4" in note
    (remark,) = remarks(run)
    assert remark == "1 verdict is not what its samples say: shown is what the samples say, § marks them"
    asked = verdict_table(run)
    assert asked is not None
    assert asked.rows == [("it is faster", "block_shock", "no", "1", "1.10", "dense_tp_row")]


def test_of_several_rows_the_fastest_answers_at_each_point() -> None:
    slow = "block_shock cusparselt 1100"
    rows = [verdict(OURS, B=4, ratio=0.8), verdict(slow, B=4, ratio=1.3, verdict="slower")]
    rows += [verdict(OURS, B=64, ratio=1.2, verdict="slower"), verdict(slow, B=64, ratio=0.7)]
    asked = verdict_table(run_of(rows))
    assert asked is not None
    assert [row[2:5] for row in asked.rows] == [("yes, at all 2", "2, the fastest of 2 rows", "0.75, 0.70–0.80")]


def test_a_verdict_on_both_passes_is_that_of_the_change_from_training_to_forward() -> None:
    both = {"forward": blocks(0.9), "training": blocks(1.2)}
    run = run_of([judged(both, optimizer="sgd"), judged({"training": blocks(1.2)}, optimizer="sgd")])
    assert [info["ratio"] for info in run.infos] == pytest.approx([0.75, 1.2], rel=1e-3)
    assert [info["verdict"] for info in run.infos] == ["faster", "slower"]


@pytest.mark.parametrize(
    "found",
    [
        {"forward": {"first": [[1e-3]], "second": [[1e-3]], "pilot": 2}},
        {"forward": {"first": [[1e-90], [1e90]], "second": [[1e90], [1e-90]], "pilot": 2}},
    ],
)
def test_blocks_that_give_no_ratio_decide_nothing(found: Info) -> None:
    run = run_of([verdict(OURS, blocks=found)])
    assert [row[-1] for row in table(run).rows] == ["undecided §"]
    assert any("its samples give no ratio" in note for note in table(run).notes)


@pytest.mark.parametrize(
    "found",
    [
        {"forward": {"first": [[1e-3], []], "second": [[1e-3], [1e-3]], "pilot": 2}},
        {"forward": {"first": [[1e-3], [1e-3]], "second": [[1e-3]], "pilot": 2}},
        {"forward": {"first": [[1e-3], [-1.0]], "second": [[1e-3], [1e-3]], "pilot": 2}},
        {"forward": {"first": [[1e-3], ["x"]], "second": [[1e-3], [1e-3]], "pilot": 2}},
        {"forward": {"first": [[1e-3], [1e-3]]}},
        {"forward": blocks(1.0), "backward": blocks(1.0)},
    ],
)
def test_damaged_blocks_leave_their_verdict_out(found: Info, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(saved([verdict(OURS), verdict(OURS, blocks=found)])))
    run = read_run(tmp_path / "run.json")
    assert (len(run.records), run.left_out) == (1, {"blocks": 1})


@pytest.mark.parametrize(
    ("word", "low", "high", "now"),
    [
        ("supported", 0.5, 0.98, "faster"),
        ("rejected", 1.02, 1.1, "slower"),
        ("rejected", 0.995, 1.1, "undecided"),
        ("rejected", 0.991, 1.009, "tie"),
        ("undecided", 0.98, 1.0, "undecided"),
        ("tie", 0.991, 1.009, "tie"),
    ],
)
def test_words_of_older_runs_are_translated(word: str, low: float, high: float, now: str) -> None:
    old = verdict(OURS, ratio=math.sqrt(low * high), ratio_low=low, ratio_high=high, verdict=word)
    assert [info["verdict"] for info in run_of([old]).infos] == [now]


STRIPPED = "saved without samples: the file is believed, § marks them"


@pytest.mark.parametrize("beside", [judged({"forward": blocks(0.9)}), verdict(OURS, verdict="tie", blocks=None)])
@pytest.mark.parametrize("word", ["faster", "supported", "undecided"])
def test_a_verdict_whose_blocks_are_gone_is_marked_where_others_have_some(word: str, beside: Info) -> None:
    run = run_of([beside, verdict(OURS, 128, ratio=0.5, verdict=word)])
    assert table_rows(run)[1].endswith(" §")
    notes = [note for table in comparison(run.records) for note in table.notes if note.startswith("§")]
    assert f"§ no samples that say it: the file is believed: {OURS} N=128 K=128 B=4" in notes
    bare = 1 + ("blocks" in beside and beside["blocks"] is None)
    assert list(remarks(run)) == [f"{bare} verdict{' was' if bare == 1 else 's were'} {STRIPPED}"]


def test_an_older_run_whose_verdicts_have_no_blocks_gets_one_remark() -> None:
    run = run_of([verdict(OURS, N, verdict=word) for N, word in ((64, "supported"), (128, "undecided"))])
    assert table_rows(run) == ["faster", "undecided"]
    assert list(remarks(run)) == [
        "2 verdicts were saved without samples: the file is believed, as one of an older version is"
    ]


@pytest.mark.parametrize("name", ["0003_2xH200-verdicts.json", "0006_2xH200-full"])
def test_official_runs_of_before_read_in_the_new_words(name: str, tmp_path: Path) -> None:
    run = read_run(OFFICIAL / name)
    found = Counter(info["verdict"] for info in run.infos if "verdict" in info)
    assert set(found) <= WORDS
    assert found["faster"] > 50 < found["slower"]
    assert not any({"saved_as", "believed"} & info.keys() for info in run.infos)
    assert (
        f"{found.total()} verdicts were saved without samples: the file is believed, as one of an older version is"
        in list(remarks(run))
    )
    assert not {"supported", "rejected"} & set(" ".join(answer(run)).replace(",", " ").split())


def test_the_rival_of_each_point_is_named_and_wide_intervals_are_flagged() -> None:
    found = [verdict(OURS, 64, rival="dense_single"), verdict(OURS, 64, 8, rival="dense_tp_col", ratio_high=1.5)]
    run = run_of(found)
    tables = [table for table in comparison(run.records) if table.section == "verdicts"]
    assert [column.name for column in tables[0].columns][5:7] == ["rival", "ratio"]
    assert [table.texts()[0][5] for table in tables] == ["dense_single", "dense_tp_col"]
    assert [row[-2].endswith(" wide") for table in tables for row in table.texts()] == [False, True]
    assert [sum(note.startswith("wide: ") for note in table.notes) for table in tables] == [0, 1]
    asked = verdict_table(run)
    assert asked is not None
    assert asked.rows == [
        ("it is faster", "block_shock", "yes, at all 2", "2", "0.90", "dense_single at 1, dense_tp_col at 1")
    ]
    assert asked.notes[1:] == ["1 with an interval wider than a factor of 1.5: measure again"]


def test_the_folder_has_verdicts_in_new_words(tmp_path: Path) -> None:
    run = saved([verdict(OURS, N, verdict="rejected", ratio=1.5) for N in (64, 128)])
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert main(["report", str(tmp_path / "run.json"), "--to", str(tmp_path / "to")]) == 0
    with (tmp_path / "to" / "tables" / "results.csv").open(encoding="utf-8") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["slower", "slower"]
    page = (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    assert "rejected" not in page
    assert "slower at 2" in page
