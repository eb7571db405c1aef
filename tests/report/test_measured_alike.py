"""What was measured in unlike ways, against unlike rivals, or once only, is set beside each other by no number."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rows import Info, run_of, timed, verdict
from test_across import DENSE, OURS, blocks, write

from blockshock.__main__ import main
from blockshock.report.across import across, other_rivals
from blockshock.report.spreads import spreads
from blockshock.saved.run import differences, named_apart

SURE: Info = {"p95_ms": 1.0, "builds_p50_ms": [1.0, 1.001, 0.999]}
SLOWER: Info = {"p50_ms": 1.5, "builds_p50_ms": [1.5, 1.501, 1.499]}
WAYS: list[tuple[Info, Info, str]] = [
    ({"timing": "cuda_graph"}, {"timing": "cuda_events"}, "timing: cuda_graph in a.json, cuda_events in b.json"),
    ({"flush": "clean"}, {"flush": "none"}, "flush of the cache: clean in a.json, none in b.json"),
    ({"flush": "clean"}, {"l2_flushed": False}, "flush of the cache: clean in a.json, none in b.json"),
    ({"device": "cuda"}, {"device": "cpu"}, "device: cuda in a.json, cpu in b.json"),
]


@pytest.mark.parametrize(("first", "second", "told"), WAYS)
def test_what_was_measured_in_another_way_is_said_and_is_no_check_of_speed(
    first: Info, second: Info, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path, "a.json", [timed(OURS, 64, 4, 1.0, **SURE) | first])
    after = write(tmp_path, "b.json", [timed(OURS, 64, 4, 1.0, **SURE) | SLOWER | second])
    for runs in ((before, after), (after, before)):
        assert main(["report", *runs, "--fail-if-slower", "3%"]) == 1, "neither way round is a pass"
        out, err = capsys.readouterr()
        assert "were measured in unlike ways" in err
        assert "slower by more than" not in err
        assert "different: " in out
    assert main(["report", before, after]) == 0
    assert told in " ".join(capsys.readouterr().out.split())


def test_verdicts_against_another_rival_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tp = verdict(OURS, 128, blocks=blocks(0.9), rival="dense_tp_row")
    first = verdict(OURS, 64, blocks=blocks(0.9), rival="dense_tp_row")
    infos = [[first, tp], [first | {"blocks": blocks(1.2), "rival": DENSE}, tp]]
    before, after = map(run_of, infos)
    assert other_rivals(before, after) == ["test[0]"]
    table = across([before, after], judged=True)
    assert [row[0] for row in table.rows] == ["test[1]", "geomean"]
    assert "1 verdict is of another rival in one of them, and not compared" in table.notes
    files = [write(tmp_path, f"{place}.json", one[:1]) for place, one in enumerate(infos)]
    assert main(["report", *files, "--fail-if-slower", "3%"]) == 1
    err = capsys.readouterr().err
    assert "not compared, and no check of speed: 1 verdict, each of another rival than before" in err
    assert "slower by more than" not in err


def test_what_is_no_longer_there_passes_no_check_of_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [timed(OURS, 64 << place, 4, 1.0, **SURE) for place in range(3)]
    three, one = write(tmp_path, "three.json", rows), write(tmp_path, "one.json", rows[:1])
    assert main(["report", three, one, "--fail-if-slower", "3%"]) == 1
    err = capsys.readouterr().err
    assert "--fail-if-slower fails, whatever else it finds: 2 benchmarks of three.json are not in one.json" in err
    assert main(["report", one, three, "--fail-if-slower", "3%"]) == 0, "more than before is no matter"


def test_numbers_over_unlike_best_dense_rows_name_these_and_are_not_said_to_lie_apart() -> None:
    ours, row, single = (
        timed(label, 64, 4, ms, role=role, **more)
        for label, ms, role, more in (
            (OURS, 1.2, "subject", {}),
            ("dense_tp_row", 2.0, "rival", {"span": "group", "promise": "dense"}),
            (DENSE, 1.0, "rival", {"span": "one", "promise": "dense"}),
        )
    )
    (line,) = spreads([run_of([ours, row, single]), run_of([ours, row])])
    assert line == (
        "block_shock gathered 1100, forward: time ÷ best dense 1.20 in run.json, 0.60 in run.json, over 1 point; "
        "at 1 point the best dense one is another: dense_single in run.json, dense_tp_row in run.json"
    )


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = ("a/x/run.json", "b/x/run.json", "other.json")
    runs = [replace(run_of([timed(OURS, 64, 4, 1.0)]), path=Path(path)) for path in paths]
    assert [run.name for run in named_apart(runs)] == ["a/x/run.json", "b/x/run.json", "other.json"]
    assert [run.name for run in named_apart(runs[1:])] == ["run.json", "other.json"]
    assert {run.name for run in named_apart([runs[0], runs[0]])} == {"run.json"}, "one file is one run"


def test_every_table_of_several_runs_says_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    files = [write(tmp_path / folder, "run.json", [timed(OURS, 64, 4, 1.0)]) for folder in ("one", "two")]
    main(["report", *files, "--tables", "forward"])
    terminal = capsys.readouterr().out
    main(["report", *files, "--format", "md"])
    for text in (terminal, capsys.readouterr().out):
        for name in ("one/run.json", "two/run.json"):
            assert f"{name}: Time over the best dense" in text
    main(["report", files[0], "--tables", "forward"])
    assert "run.json: " not in capsys.readouterr().out


def test_a_page_of_several_runs_compares_their_verdicts_too(tmp_path: Path) -> None:
    files = [
        write(tmp_path, f"{place}.json", [verdict(OURS, blocks=blocks(ratio))])
        for place, ratio in enumerate((0.9, 1.0))
    ]
    assert main(["report", *files, "--to", str(tmp_path / "to")]) == 0
    with (tmp_path / "to" / "tables" / "verdicts-compared.csv").open(encoding="utf-8") as file:
        header, line, _ = csv.reader(file)
    assert header[:3] == ["benchmark", "before", "after"]
    assert float(line[2]) > float(line[1])
    assert not (tmp_path / "to" / "tables" / "runs-compared.csv").exists()


def test_what_else_decides_speed_is_told_where_both_say_it() -> None:
    def told(*machines: dict[str, Any]) -> list[str]:
        return differences([run_of([timed(OURS, 64, 4, 1.0)], **machine) for machine in machines])

    assert told({"driver": "550", "cuda": "12.4"}, {"driver": "570", "cuda": "13.0"}) == [
        "CUDA 12.4 (run.json) and 13.0 (run.json)",
        "driver 550 (run.json) and 570 (run.json)",
    ]
    assert told({"driver": "550"}, {}) == []
