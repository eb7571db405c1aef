"""Saved runs that somebody edited by hand: what was taken from them or put into them is named, and never counted."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from rows import Info, checked, limited, networked, saved, stepped, timed, verdict

from blockshock.__main__ import main
from blockshock.report.answer import answer
from blockshock.report.comparison import comparison
from blockshock.report.limits import limit_lines
from blockshock.report.remarks import remarks
from blockshock.report.run_tables import run_tables
from blockshock.saved.results import NotARun, Run, read_run

OURS = "block_shock gathered 1100"
TRAINED = {"phase": 3, "optimizer": "sgd", "worst_weight_share": 0.5, "steps": 2}
SERIES = ("ratio", "relative_error", "dense_relative_error", "max_error", "mean_error")
DRIFT = {"worst_drift": 1.5, "steps": 2} | {name: [1.0, 1.5] for name in SERIES}
ERRORS = ("error_ratio", "relative_error", "max_error", "mean_error", "of_bound", "same_on_ranks", "same_again")


def read(path: Path, document: Info) -> Run:
    (path / "run.json").write_text(json.dumps(document))
    return read_run(path / "run.json")


def without(info: Info, *names: str) -> Info:
    return {name: value for name, value in info.items() if name not in names}


@pytest.mark.parametrize(
    ("kept", "lost"),
    [
        (checked(OURS, status="right"), "error_ratio"),
        (checked(OURS, phase=2, losses={}), "error_ratio"),
        (without(checked(OURS), *ERRORS) | TRAINED, "worst_weight_share"),
        (without(checked(OURS), *ERRORS) | DRIFT, "worst_drift"),
        (timed(OURS, 64, 4, 1.0), "p50_ms"),
        (timed(OURS, 64, 4, 1.0, phase=2), "p50_ms"),
        (stepped(OURS, 64, 4, 1.0), "p50_ms"),
        (networked(OURS, 1.0, 0.5), "p50_ms"),
        (networked(OURS, 1.0, 0.5), "network"),
        (verdict(OURS), "verdict"),
        (checked(OURS), "phase"),
    ],
)
def test_a_result_without_the_number_that_makes_it_one_is_counted_by_that(
    kept: Info, lost: str, tmp_path: Path
) -> None:
    assert read(tmp_path, saved([checked("dense_single"), kept])).left_out == {}
    run = read(tmp_path, saved([checked("dense_single"), without(kept, lost)]))
    assert (len(run.records), run.left_out) == (1, {lost: 1})
    assert f"left out: 1 result that does not say its {lost}, of another version it seems" in list(remarks(run))


def test_a_value_that_cannot_be_is_told_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[Info] = [{"p50_ms": ms} for ms in (None, 0.0, -1.5, -1.5, math.nan, "fast\n", 1e300)]
    odd += [{"phase": 7}, {"stages": [1] * 99}]
    document = saved([timed(OURS, 64, 4, 1.0)] * (1 + len(odd)))
    for bench, values in zip(document["benchmarks"][1:], odd, strict=True):
        bench["extra_info"] = bench["extra_info"] | values
    run = read(tmp_path, document)
    told = [
        "left out: 1 result that does not say its p50_ms, of another version it seems",
        "left out: 6 results whose p50_ms is 0.0 or -1.5 or NaN or 2 other values, and must be a number above 0",
        "left out: 1 result whose phase is 7, which cannot be shown",
        "left out: 1 result whose stages is [1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…, which cannot be shown",
    ]
    assert list(remarks(run))[: len(told)] == told
    (tmp_path / "other.json").write_text(json.dumps(saved([checked(OURS)])))
    assert list(remarks(read_run(tmp_path)))[: len(told)] == told, "of a folder's parts too"
    assert main(["report", str(run.path), "--format", "csv"]) == 0
    assert f"run.json: {told[1]}" in capsys.readouterr().err, "a program's rows have no place for it"


def test_samples_that_cannot_be_are_told(tmp_path: Path) -> None:
    document = saved([timed(OURS, 64, 4, 1.0), timed("dense_single", 64, 4, 1.0)])
    document["benchmarks"][0]["stats"] = {"data": [0.001, -1]}
    document["benchmarks"][1]["stats"] = {"data": []}
    told = "1 result has samples that are not all numbers above 0: they count as not saved"
    assert told in list(remarks(read(tmp_path, document)))


@pytest.mark.parametrize("emptied", [{}, None, [], ["phase"], 3])
def test_a_result_that_says_nothing_is_counted_too(emptied: Any, tmp_path: Path) -> None:
    document = saved([checked("dense_single"), checked(OURS)])
    document["benchmarks"][1]["extra_info"] = emptied
    assert read(tmp_path, document).left_out == {"phase": 1}
    document["benchmarks"] = document["benchmarks"][1:]
    with pytest.raises(NotARun, match="none of Block-Shock's tests"):
        read(tmp_path, document)


def test_what_ran_untimed_lacks_nothing(tmp_path: Path) -> None:
    untimed = without(timed(OURS, 64, 4, 1.0, timing="none"), "p50_ms", "p95_ms")
    assert read(tmp_path, saved([untimed])).left_out == {}


def test_what_was_judged_wrong_is_named_without_its_number_too(tmp_path: Path) -> None:
    wrong = without(checked(OURS, status="wrong"), "error_ratio")
    first, second, *_ = answer(read(tmp_path, saved([checked("dense_single"), wrong])))
    why = "it was judged wrong when it ran"
    assert first == f"WRONG: {OURS} in 1 of 1 check, at gaussian 64×64 B=4 bf16: {why}"
    assert second.endswith("2 results, 2 checked: 1 WRONG")
    told = read(tmp_path, saved([wrong | {"failure": "seed 0: nothing was learned"}]))
    assert answer(told)[0].endswith("bf16: seed 0: nothing was learned"), "newer versions say why"


def test_a_phase_that_there_is_not_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, saved([checked(OURS), timed(OURS, 64, 4, 1.0, phase=7)])).left_out == {"phase": 1}


def twice(results: int) -> Info:
    document = saved([checked(OURS, error_ratio=1.5), timed(OURS, 64, 4, 1.0), checked(OURS)])
    document["benchmarks"][2]["name"] = document["benchmarks"][0]["name"]
    return document | {"benchmarks": document["benchmarks"][:results]}


def test_a_result_that_stands_twice_in_a_file_counts_once_and_is_the_last(tmp_path: Path) -> None:
    run = read(tmp_path, twice(3))
    assert [info["label"] for info in run.infos] == [OURS, OURS]
    assert run.infos[0]["error_ratio"] == 1.0
    assert answer(run)[0].endswith("2 results, 1 checked: all right")
    told = "1 result is in run.json more than once: shown is the last"
    assert list(remarks(run)) == [told]
    assert told in list(remarks(read_run(tmp_path))), "of the folder too"
    assert list(remarks(read(tmp_path, twice(2)))) == []


def test_a_file_that_is_given_twice_is_reported_on_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(twice(2)))
    (tmp_path / "link.json").symlink_to(path)
    assert main(["report", str(path), str(tmp_path / "link.json"), str(tmp_path / "." / "run.json")]) == 0
    out, err = capsys.readouterr()
    assert err == f"{path} was given 3 times: it is reported on once\n"
    assert " ".join(out.split()).count("2 results, 1 checked: all right") == 1
    assert "before" not in out


ROUNDS = [1.3e-3, 0.9e-3, 1.0e-3, 1.1e-3, 1.2e-3, 0.8e-3, 2.0e-3]
"""Of three builds: three rounds, two and two."""
MEDIANS = {
    "p50_ms": 1e3 * statistics.median(ROUNDS),
    "p95_ms": 1e3 * statistics.quantiles(ROUNDS, n=100, method="inclusive")[94],
    "builds_p50_ms": [1.0, 1.15, 1.4],
}


def of_rounds(rounds: list[float], **more: object) -> Info:
    document = saved([timed(OURS, 64, 4, 9.0) | MEDIANS | more, timed("dense_single", 64, 4, 2.0)])
    document["benchmarks"][0]["stats"]["data"] = rounds
    return document


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"p50_ms": 0.1}, "p50 0.1000 ms"),
        ({"p95_ms": 0.2}, "p95 0.2000 ms"),
        ({"builds_p50_ms": [0.1, 1.15, 1.4]}, "builds p50 0.1000, 1.1500, 1.4000 ms"),
        ({"builds_p50_ms": [1e-3] * 8}, f"builds p50 {', '.join(['0.0010'] * 8)} ms"),
        ({"p50_ms": 0.1, "p95_ms": 0.2}, "p50 0.1000 ms, p95 0.2000 ms"),
    ],
    ids=str,
)
def test_times_that_are_not_what_the_samples_give_are_replaced_and_named(
    planted: Info, said: str, tmp_path: Path
) -> None:
    run = read(tmp_path, of_rounds(ROUNDS, **planted))
    for name in set(MEDIANS) - ({"builds_p50_ms"} if len(planted.get("builds_p50_ms", ())) == 8 else set()):
        assert run.infos[0][name] == pytest.approx(MEDIANS[name])
    (table,) = comparison(run.records)
    assert [row[0] for row in table.rows] == [f"{OURS} §", "dense_single"]
    assert f"§ computed anew from its samples; its file says {said}: {OURS} N=64 K=64 B=4" in table.notes
    told = "1 timed result is not what its samples say: shown is what the samples say, § marks them"
    assert list(remarks(run)) == [told]


def test_times_that_are_what_the_samples_give_are_not_touched(tmp_path: Path) -> None:
    run = read(tmp_path, of_rounds(ROUNDS))
    assert list(remarks(run)) == []
    assert {name: run.infos[0][name] for name in MEDIANS} == MEDIANS


@pytest.mark.parametrize("gone", [[], [1e-3, None], [0.0]])
def test_times_without_samples_are_marked_where_others_have_some(gone: list[Any], tmp_path: Path) -> None:
    run = read(tmp_path, of_rounds(gone, p50_ms=0.1))
    (table,) = comparison(run.records)
    assert [row[:2] for row in table.rows] == [(f"{OURS} §", 0.1), ("dense_single", 2.0)]
    assert f"§ no samples that say it: the file is believed: {OURS} N=64 K=64 B=4" in table.notes
    told = "saved without samples: the file is believed"
    spoilt = ["1 result has samples that are not all numbers above 0: they count as not saved"] if gone else []
    assert list(remarks(run)) == [f"1 timed result was {told}, § marks them", *spoilt]
    document = of_rounds(gone)
    document["benchmarks"][1]["stats"] = {}
    assert list(remarks(read(tmp_path, document))) == [
        f"2 timed results were {told}, as one of an older version is",
        *spoilt,
    ]


def test_what_a_verdict_says_of_errors_is_not_read(tmp_path: Path) -> None:
    more = {"error_ratio": "x", "worst_drift": 1.0, "worst_weight_share": None, "dense_relative_error": "x"}
    run = read(tmp_path, saved([checked(OURS), verdict(OURS) | more, verdict(OURS)]))
    assert answer(run)[0].endswith("3 results, 1 checked: all right")
    assert [bool(info.get("wrong")) for info in run.infos] == [False] * 3


@pytest.mark.parametrize("status", ["failed", "weird", "", "Right", 1, True, ["right"]])
def test_a_status_that_nobody_knows_is_not_taken_for_right(status: Any, tmp_path: Path) -> None:
    run = read(tmp_path, saved([checked("dense_single", status="right"), checked(OURS, status=status)]))
    assert run.left_out == {"status": 1}
    assert answer(run)[0].endswith("1 result, 1 checked: all right")


def test_of_a_status_that_is_null_only_the_errors_count(tmp_path: Path) -> None:
    right, wrong = checked("dense_single", status=None), checked(OURS, status=None, error_ratio=1e9)
    run = read(tmp_path, saved([right, wrong, timed(OURS, 64, 4, 1.0, status=None)]))
    assert answer(run)[1].endswith("3 results, 2 checked: 1 WRONG"), "what was only timed was not checked"


LIMIT = "in the file of which more than 150% would be reached: a dash stands for such a one"


@pytest.mark.parametrize("planted", [60.0, 1.51, math.nan, math.inf, -0.6])
@pytest.mark.parametrize("bare", [False, True])
def test_a_limit_that_cannot_be_one_is_a_dash_and_a_remark(planted: float, bare: bool, tmp_path: Path) -> None:
    claimed = limited(0.5, limit_ms=planted, of_limit=planted)
    document = saved([timed(OURS, 8192, 256, 1.0, **claimed), timed("dense_single", 8192, 256, 2.0, **limited(0.5))])
    for bench in document["benchmarks"] if bare else ():
        bench["stats"] = {}
    run = read(tmp_path, document)
    told = [line for line in remarks(run) if "limit" in line]
    assert told == [f"1 result has a limit {LIMIT}"]
    (table,) = (table for table in run_tables(run) if table.title.startswith("Share of the limit"))
    assert [row[7:10] for row in table.texts()] == [["–", "–", "–"], ["0.6000", "30%", "compute"]]
    assert list(limit_lines(run.infos)) == []


@pytest.mark.parametrize("told", [{"of_limit": 41.0}, {"limit_ms": 41.0}])
def test_one_half_of_such_a_limit_is_none_either(told: Info, tmp_path: Path) -> None:
    run = read(tmp_path, saved([timed(OURS, 64, 4, 1.0, **told)]))
    assert (run.infos[0]["limit_ms"], run.infos[0]["of_limit"]) == (None, None)


def test_so_is_that_of_a_part(tmp_path: Path) -> None:
    claimed = limited(0.6)
    claimed["limits"]["products"]["limit_ms"] *= 100
    run = read(tmp_path, saved([timed(OURS, 64, 4, 1.0, **claimed), timed(OURS, 128, 4, 1.0, **limited(0.6))]))
    assert [line for line in remarks(run) if "limit" in line] == [f"1 result has a limit {LIMIT}"]
    (whole, products, communication) = (run.infos[0], *run.infos[0]["limits"].values())
    assert [part["of_limit"] for part in (whole, products, communication)] == pytest.approx([0.6, None, 0.5])


def test_a_limit_that_is_just_beaten_is_shown_as_it_is(tmp_path: Path) -> None:
    run = read(tmp_path, saved([timed(OURS, 64, 4, 1.0, **limited(0.5, limit_ms=1.05))]))
    assert run.infos[0]["of_limit"] == pytest.approx(1.05)
    assert list(remarks(run)) == []
