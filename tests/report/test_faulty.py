"""A run with something wrong says so first, says where, and ends with a status that a script sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Info, checked, run_of, saved, stepped, timed

from blockshock.__main__ import main
from blockshock.report import screen
from blockshock.report.answer import answer
from blockshock.report.comparison import comparison
from blockshock.report.faulty import MOST_POINTS, MOST_ROWS, wrong_lines
from blockshock.report.tables import Column

OURS, DENSE = "block_shock gathered 1100", "dense_single"
WHY = "its error is 1e+09 × the dense product's"


def wrong(N: int, label: str = OURS, **more: object) -> Info:
    return checked(label, N, error_ratio=1e9, **more)


def write(path: Path, infos: list[Info]) -> str:
    path.write_text(json.dumps(saved(infos)))
    return str(path)


def test_a_few_points_are_named_and_the_rest_counted() -> None:
    rows = [checked(OURS, 32), *(wrong(64 << place) for place in range(MOST_POINTS + 2))]
    assert list(wrong_lines(run_of(rows).infos)) == [
        f"WRONG: {OURS} in 5 of 6 checks, at gaussian 64×64 B=4 bf16; gaussian 128×128 B=4 bf16; gaussian 256×256 B=4 "
        f"bf16; 2 more: {WHY}"
    ]
    of_training = wrong(64) | {"phase": 3, "optimizer": "sgd"}
    assert f"at gaussian 64×64 B=4 bf16 sgd: {WHY}" in next(wrong_lines([of_training]))
    assert list(wrong_lines(run_of([checked(OURS)]).infos)) == []


def test_of_many_wrong_rows_the_last_are_named_without_their_points() -> None:
    rows = [wrong(64, f"method_{place}") for place in range(MOST_ROWS + 2)]
    lines = list(wrong_lines(run_of([*rows, wrong(128, "method_5")]).infos))
    assert len(lines) == MOST_ROWS + 1
    assert lines[0].startswith("WRONG: method_5 in 2 of 2 checks"), "the most often wrong first"
    assert lines[-1] == "WRONG too: method_3 in 1 of 1, method_4 in 1 of 1"


def test_the_answer_begins_with_it_on_every_screen() -> None:
    run = run_of([wrong(64), timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)])
    assert answer(run)[0].startswith(f"WRONG: {OURS} in 1 of 1 check")
    assert screen.of_run(run, "title", "more")[:2] == ["title", answer(run)[0]]
    fine = run_of([timed(DENSE, 64, 4, 2.0)])
    assert screen.of_runs([fine, run], "more")[0].startswith(f"run.json: WRONG: {OURS}")


def test_a_run_whose_rows_are_all_wrong_says_that_they_were_timed() -> None:
    ours, dense = timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)
    told = [answer(run_of([wrong(64, bad), ours, dense]))[2] for bad in (OURS, DENSE)]
    assert told == [
        "what is asked about was timed (1 result), and all of it is WRONG: none of its times counts",
        "a dense alternative was timed (1 result), and all of it is WRONG: there is none to set anything beside",
    ]
    nothing, elsewhere = "nothing that is asked about was timed beside a dense alternative: ", timed(DENSE, 128, 4, 2.0)
    assert answer(run_of([dense]))[1] == f"{nothing}add a method that is asked about"
    assert answer(run_of([ours]))[1] == (
        f"{nothing}add a dense row in format plain (a dense one in --methods, plain in --formats)"
    )
    assert answer(run_of([ours, elsewhere]))[1] == f"{nothing}they share no point"
    assert answer(run_of([checked(OURS), wrong(64, DENSE)]))[2].startswith("largest error"), "nothing was timed"


def test_what_stands_beside_no_dense_row_says_what_is_missing_and_how_to_get_it() -> None:
    named: Info = {"rivals": {"dense_single": None}}
    ours, pruned = timed(OURS, 64, 4, 1.0), timed("pruned auto", 64, 4, 1.0, span="one", promise="own weights", **named)
    tp, few = timed("dense_tp_row", 64, 4, 2.0), timed("dense_single int8", 64, 4, 0.5, promise="own weights")
    run = run_of([ours, pruned, tp])
    assert answer(run)[-1] == "pruned: timed beside no dense alternative: add a dense row to --methods (dense_single)"
    (table,) = (table for table in comparison(run.records) if table.section == "forward")
    assert table.notes[1] == "no best dense for pruned auto: add a dense row to --methods (dense_single)"
    told = "dense_single did not run in format plain: add plain to --formats"
    run = run_of([ours, pruned, tp, few | {"picks": {"format": "int8"}}])
    assert answer(run)[1] == f"nothing that is asked about was timed beside a dense alternative: {told}"
    (table,) = (table for table in comparison(run.records) if table.section == "forward")
    assert table.notes == [f"no best dense for {OURS}, pruned auto: {told}"]
    assert {row[table.columns.index(Column("÷ best dense", ".2f"))] for row in table.rows} == {None}
    wrong_dense = [pruned, timed(DENSE, 64, 4, 2.0), wrong(64, DENSE), tp, ours]
    assert "pruned: timed beside no dense alternative: all of those are WRONG" in answer(run_of(wrong_dense))


@pytest.mark.parametrize("options", [(), ("--tables",), ("--format", "md"), ("--format", "csv"), ("--format", "json")])
def test_the_status_says_that_a_check_failed(options: tuple[str, ...], tmp_path: Path) -> None:
    rows = [timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)]
    good, bad = (write(tmp_path / f"{row['N']}.json", [*rows, row]) for row in (checked(OURS, 64), wrong(128)))
    assert main(["report", good, *options]) == 0
    assert main(["report", bad, *options]) == 1
    assert main(["report", good, bad, *options]) == 1
    assert main(["report", bad, good, *options]) == 0, "it was, and is no more"


def test_a_training_run_that_went_astray_and_a_layer_that_drifts_count_too(tmp_path: Path) -> None:
    astray = stepped(f"{OURS} masked", 64, 4, 1.0) | {"worst_weight_share": 3.0, "steps": 50}
    assert main(["report", write(tmp_path / "run.json", [astray])]) == 1


def test_what_is_wrong_is_compared_with_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)]
    good = write(tmp_path / "good.json", [*rows, checked(OURS, 64)])
    bad = write(tmp_path / "bad.json", [*rows, wrong(64)])
    assert main(["report", good, bad]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 benchmark in all of them" in out
    assert "1 result is WRONG, and compared with nothing" in out


def test_help_says_which_status_means_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "The exit status is 0; 1 if no run could be read, a result of the run is WRONG" in told
    assert "2 for a wrong option, or tables that a run has none of" in told
