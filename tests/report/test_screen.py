"""What is printed fits on a screen or into a comment, whatever the run; one point has one number wherever it stands."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from inner_pytest import ROOT
from rows import Info, checked, run_of, saved, stepped, tables, timed, verdict

from blockshock.__main__ import main
from blockshock.matrices import WORKLOADS
from blockshock.matrices.workloads import Workload
from blockshock.phases.ffn import WORKLOAD
from blockshock.report import screen
from blockshock.report.answer import answer
from blockshock.report.asked import verdict_table
from blockshock.report.command import PASTED, pasted, sections
from blockshock.report.comparison import comparison
from blockshock.report.ending import LINES, print_ending
from blockshock.report.fastest import against_best
from blockshock.report.ran import DRAWN
from blockshock.report.remarks import remarks
from blockshock.report.show import fitted
from blockshock.saved.results import Run, read_run

REPORT = ROOT / "blockshock" / "report"
OFFICIAL = sorted((ROOT / "benchmark_results" / "official").iterdir())
OURS, DENSE = "block_shock gathered 1100", "dense_single"
PAIR = {"first": [[1e-3]] * 10, "second": [[1e-3]] * 10, "pilot": 10}


def of_a_thousand() -> Run:
    """Of a dozen methods with long names, all of whom somebody asks about, in two dtypes."""
    names = [f"a_method_of_mine_with_a_long_name_{number}" for number in range(12)]
    points = [(N, B, dtype) for N in (1024, 2048, 4096) for B in (1, 16, 64) for dtype in ("bf16", "fp16")]
    rows: list[Info] = []
    for N, B, dtype in points:
        rows += [make(DENSE, N, B, 2.0, dtype=dtype) for make in (timed, stepped)]
        for place, name in enumerate(names):
            rows += [make(f"{name} auto", N, B, 1.0 + N / 4096 * place, dtype=dtype) for make in (timed, stepped)]
            rows += [verdict(f"{name} auto", N, B, dtype=dtype, hypothesis=f"H{place}", statement=f"it is {'so ' * 9}")]
            rows += [checked(f"{name} auto", N, B, dtype=dtype)]
    rows += [checked(OURS, N, error_ratio=1e9) for N in range(64, 64 + 200)]
    return run_of(rows, gpus=["NVIDIA H100 80GB HBM3, 81559 MiB"] * 8, torch="2.13")


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_what_is_printed_of_an_official_run_fits(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    run = read_run(path)
    assert [
        " ".join(line.split())
        for line in answer(run)
        if " ".join(line.split()) not in " ".join(" ".join(lines).split())
    ] == []
    assert sum(len(part.encode()) + 1 for part in pasted([run])) <= PASTED


@pytest.mark.parametrize(("width", "lines"), [(120, 60), (80, LINES), (80, 20)])
def test_a_run_of_a_thousand_results_fits_too_and_says_what_is_cut(width: int, lines: int) -> None:
    run = of_a_thousand()
    assert len(run.records) > 1000
    shown = screen.of_run(run, "title", "more", width, lines)
    assert len(shown) <= lines
    assert max(map(len, shown)) <= width
    assert sum("more lines: --tables" in line for line in shown) >= 1
    both = screen.of_runs([run, run], "more", width, lines)
    assert len(both) <= lines
    assert max(map(len, both)) <= width
    assert sum(len(part.encode()) + 1 for part in pasted([run])) <= PASTED


@pytest.mark.parametrize("lines", range(16, 40))
def test_what_is_left_out_of_an_answer_is_left_out_whole(lines: int) -> None:
    run = of_a_thousand()
    shown = screen.of_run(run, "title", "more", 80, lines)
    told = " ".join(" ".join(shown).split())
    cut = next(place for place, line in enumerate(shown) if "more lines: --tables" in line)
    last = [line for line in answer(run)[1:] if shown[cut - 1].strip() in " ".join(line.split())]
    assert any(" ".join(line.split()) in told for line in last), "the last that is shown is shown to its end"


def test_the_end_of_a_session_is_the_answer_below_the_tables_that_no_file_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = run_of([timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)])
    shown = {}
    for written in (None, Path("benchmark_results/x/0001.json"), Path("elsewhere/my runs/0001.json")):
        out = io.StringIO()
        print_ending(run, [], written, out)
        shown[str(written)] = out.getvalue()
    assert "÷ best dense" in shown["None"].partition("forward: pays")[0]
    assert shown["None"].splitlines()[-1] == "--benchmark-autosave saves a run"
    assert shown["benchmark_results/x/0001.json"].splitlines()[-2:] == [
        "tables: python -m blockshock report --tables",
        "Saved: benchmark_results/x/0001.json",
    ]
    elsewhere = shown["elsewhere/my runs/0001.json"]
    assert "report 'elsewhere/my runs/0001.json' --tables" in elsewhere, "it can be pasted"
    assert "p50 ms" not in elsewhere


def test_a_session_that_only_checked_says_how_many_were_right_and_the_worst() -> None:
    found = answer(run_of([checked(DENSE), checked(OURS, 128, error_ratio=1.5)]))
    assert found[0].endswith("2 results, 2 checked: all right")
    assert found[1:] == [f"largest error: 75% of what passes, {OURS}, gaussian 128×128 B=4 bf16"]


def test_two_sessions_are_compared_at_the_end_of_the_second() -> None:
    out, run = io.StringIO(), run_of([timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)])
    print_ending(run, [run], Path("a.json"), out)
    assert out.getvalue().index("geomean") < out.getvalue().index("forward: pays")


def test_what_is_to_be_pasted_is_whole_however_narrow_the_terminal() -> None:
    path = f"'my runs/a b/Linux-CPython-3.11-64bit/0001_{'1aca902f' * 5}_20261127_114754.json'"
    more, run = f"tables: python -m blockshock report {path} --tables", run_of([timed(OURS, 64, 4, 1.0)])
    for lines in screen.of_run(run, path, more, 60), screen.of_runs([run, run], more, 60):
        assert sum(path in line for line in lines) == (2 if path in lines[0] else 1)
        assert all(len(line) <= 60 or path in line for line in lines)


def test_tables_by_their_section_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in OFFICIAL if path.name.startswith("0011"))
    assert sections(read_run(path)) == ["forward", "backward", "training", "verdicts", "accuracy", "machine"]
    assert main(["report", str(path), "--tables", "verdicts"]) == 0
    verdicts = capsys.readouterr().out
    assert "What was asked, and the answer" in verdicts
    assert "of 20 points" in verdicts
    assert "p50 ms" not in verdicts
    assert main(["report", str(path), "--tables"]) == 0
    every = capsys.readouterr().out
    assert "p50 ms" in every
    assert verdicts.strip() not in ("", every.strip())
    assert main(["report", str(path), "--tables", "speeds"]) == 2
    assert capsys.readouterr().err == (
        "--tables: there are none of 'speeds'; choose one of forward, backward, training, ffn, networks, learning, "
        "verdicts, accuracy, drift, machine, across, all\n"
    )


def test_runs_may_follow_what_asks_for_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other, folder = Path("one.json"), Path("other.json"), Path("parts")
    one.write_text(json.dumps(saved([timed(OURS, 64, 4, 1.0)])))
    other.write_text(json.dumps(saved([timed(OURS, 128, 4, 1.0)])))
    folder.mkdir()
    (folder / "part.json").write_text(json.dumps(saved([timed(OURS, 256, 4, 1.0)])))
    Path("machine").mkdir()  # what is a section is no path
    for words, Ns in (
        (["--tables", "one.json"], ("N=64",)),
        (["--tables", "forward", "one.json", "parts"], ("N=64", "N=256")),
        (["one.json", "--tables", "other.json", "forward"], ("N=64", "N=128")),
    ):
        assert main(["report", *words]) == 0
        out = capsys.readouterr().out
        assert [N for N in ("N=64", "N=128", "N=256") if f"{N} B=4" in out] == sorted(Ns, key=lambda N: int(N[2:]))
    for words, status, told in (
        (["--tables", "gone.json"], 1, "skipped gone.json: No such file"),
        (["--tables", "part"], 2, "there are none of 'part'; choose one of forward, "),
        (["--tables", "forward", "drift", "one.json"], 2, "there are none of 'forward drift'; choose one of"),
        (["--tables", "machine"], 1, "no saved run of your own"),
        (["--tables", ""], 2, "there are none of ''; choose one of forward, "),
    ):
        assert main(["report", *words]) == status
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report", ""], ["report", "a.json", "--to", ""], ["recover", ""]])
def test_an_empty_path_is_not_this_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "takes a path, got an empty one: this folder is ." in capsys.readouterr().err


def test_all_rows_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in OFFICIAL if path.name.startswith("0011"))
    run = read_run(path)
    assert main(["report", str(path), "--format", "json"]) == 0
    objects = json.loads(capsys.readouterr().out)
    assert main(["report", str(path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(objects) == len(rows) == len(run.records)
    assert {tuple(one) for one in objects} == {tuple(rows[0])}, "the same columns in each"
    assert not any(isinstance(value, dict | list) for one in objects for value in one.values())
    assert [one["test"] for one in objects] == [row["test"] for row in rows] == [r["name"] for r in run.records]
    assert [one["p50_ms"] for one in objects] == [info.get("p50_ms") for info in run.infos]
    assert objects[0]["picks.kernel"] is None or isinstance(objects[0]["picks.kernel"], str)


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_a_point_has_one_number_in_the_answer_and_in_every_table(path: Path) -> None:
    run = read_run(path)
    points = {
        (one.section, one.N, one.K, one.B, one.workload, one.dtype, one.optimizer, one.label): one
        for one in against_best(run)
    }
    over_all: dict[str, list[float]] = {}
    for title, table in tables(run.infos).items():
        if title != "Time over the best dense":
            continue
        names = [column.name for column in table.columns]
        for row in table.rows:
            cell = dict(zip(names, row, strict=True))
            key = (
                table.section,
                cell["N"],
                cell["K"],
                cell["B"],
                cell["workload"],
                cell["dtype"],
                cell.get("optimizer"),
                cell["method"],
            )
            if key in points:
                over_all.setdefault(table.section, []).append(points[key].ratio)
                assert (cell["÷ best dense"], cell["best dense"]) == (points[key].ratio, points[key].rival)
                rival = cell.get(f"÷ {points[key].rival}")
                assert rival is None or rival == points[key].ratio, "one and the same pair"
    beside = [row for table in comparison(run.records) if table.section in over_all for row in table.rows]
    shown = {(row[0], cell) for row in beside for cell in row[1:] if isinstance(cell, float)}
    assert all((one.label, one.ratio) in shown for one in points.values() if one.section in over_all)
    for line in answer(run)[1:]:
        if found := re.search(r"÷ best dense \(.*?\): (\d+\.\d\d)(?:, (\d+\.\d\d)–(\d+\.\d\d))?", line):
            said = {number for number in found.groups() if number}
            ratios = [one.ratio for one in points.values()]
            assert said - {found[1]} <= {f"{ratio:.2f}" for ratio in ratios}
    assert not re.search(r"\d ?× (?!dense's|NVIDIA|AMD)", " ".join(answer(run)).partition(" · ")[2])


def test_a_ratio_is_written_in_one_way() -> None:
    """``÷`` and no ``×``, which counts GPUs and parts sizes; never another word for the time over the rival's."""
    for path in sorted(REPORT.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            rest = re.sub(r"count\} × \{|\}×\{|\d×\d|N×K|\"×\": \"x\"", "", line)
            assert "×" not in rest, f"{path.name}: {line}"
            assert not re.search(r"speed-?up|times faster|of the best dense alternative's time", rest, re.IGNORECASE)


def test_cells_of_a_verdict_table_go_on_below_themselves() -> None:
    table = verdict_table(run_of([verdict(OURS, statement="it is as fast as " + "anything " * 12)]))
    assert table is not None
    lines = fitted(table, 90)
    assert max(map(len, lines)) <= 90
    assert " ".join(" ".join(lines).split()).count("anything") == 12


def test_on_a_narrow_screen_verdicts_are_sentences() -> None:
    run = run_of([verdict(OURS, N, rival="dense_single", statement="it is faster") for N in (64, 128)])
    shown = " ".join(screen.of_run(run, "", "", width=80))
    assert "block_shock: it is faster? yes, at all 2 (÷ dense_single: 0.90; points: 2)" in shown
    assert "asked" in " ".join(screen.of_run(run, "", ""))


def test_the_width_is_that_of_a_terminal_and_120_of_what_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(path for path in OFFICIAL if path.name.startswith("0011"))
    monkeypatch.setenv("COLUMNS", "72")
    widest = {}
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda found=is_terminal: found)
        for arguments in ((path,), (path, OFFICIAL[0])):
            assert main(["report", *map(str, arguments)]) == 0
            widest[is_terminal, len(arguments)] = max(map(len, capsys.readouterr().out.splitlines()))
    assert widest[True, 1] <= 72 >= widest[True, 2]
    assert 100 < widest[False, 1] <= 120
    assert [screen.fitting(columns) for columns in (20, 80, 400)] == [60, 80, 120]


def test_tables_that_a_run_has_none_of_are_no_empty_success(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in OFFICIAL if path.name.startswith("0011"))
    names = "forward, backward, training, verdicts, accuracy, machine"
    for wanted in ("drift", "across"):
        assert main(["report", str(path), "--tables", wanted]) == 2
        told = f"--tables: {path} has none of {wanted!r}; choose one of {names}, all\n"
        assert capsys.readouterr() == ("", told)
    other = next(path for path in OFFICIAL if path.name.startswith("0009"))
    assert main(["report", str(path), str(other), "--tables", "drift"]) == 0, "one of them has some"
    assert main(["report", str(path), str(other), "--tables", "across"]) == 0
    capsys.readouterr()


def test_a_use_says_what_was_tried_and_a_run_which_weights() -> None:
    rows = [timed(label, N, 4, 2.0, K=64) for label in (OURS, DENSE) for N in (64, 128)]
    ran, use = answer(run_of(rows))
    assert "bf16, CUDA graphs, random W (gaussian), N 64–128, K 64, B 4, " in ran, "of the one use, or of all alike"
    assert use.startswith(f"{OURS}, forward: ")
    other = [stepped(label, 64, 8, 2.0) for label in (OURS, DENSE)]
    ran, forward, training = answer(run_of([*rows, *other]))
    assert "N 64" not in ran
    assert forward.startswith(f"{OURS}, forward (N 64–128, K 64, B 4): ")
    assert training.startswith(f"{OURS}, training step (N 64, B 8): ")
    others = [timed(DENSE, 64, 4, 2.0, workload=name) for name in ("uniform:low=0", "recorded")]
    mixed = answer(run_of([*rows, *others]))
    assert ", recorded W and random W (gaussian, uniform:low=0), N 64–128, K 64, B 4, gaussian, " in mixed[0]


def test_the_workloads_that_are_said_to_be_random_are_so() -> None:
    drawn = [name for name in WORKLOADS.names() if WORKLOADS.get(name).weights is Workload.weights]
    assert list(DRAWN) == [*drawn, WORKLOAD], "and those of feed-forward blocks"


def test_a_dense_product_of_a_W_with_zeros_is_remarked_on_whatever_it_is_called() -> None:
    of_zeros = timed("mine magnitude", 64, 4, 1.0, algorithm="dense", picks={"pruner": "magnitude"}, role="ablation")
    dense = timed(DENSE, 64, 4, 2.0, algorithm="dense")
    (told,) = remarks(run_of([of_zeros, dense]))
    assert told == (
        "mine magnitude multiplies zeros of W, which GPUs do faster at large points. With zeros in their data they "
        "draw less power and clock higher (time ÷ best dense down to 0.50 here): nothing is skipped"
    )
    subject = of_zeros | {"role": "subject", "algorithm": "dense, backward reference"}
    assert len(list(remarks(run_of([subject, dense])))) == 1
    for other in (
        {"algorithm": "cusparselt algorithm 3"},
        {"picks": {"kernel": "dense"}},
        {"device": "cpu"},
    ):
        assert list(remarks(run_of([of_zeros | other, dense]))) == []


@pytest.mark.parametrize(
    ("picks", "algorithm", "told"),
    [
        ({"format": "fp8"}, "dense", False),
        ({"recipe": "dense"}, "dense", False),
        ({"recipe": "ste"}, "dense, with zeros", True),
        ({"kernel": "dense", "combine": "nccl"}, "dense", False),
        ({"kernel": "cusparselt", "pruner": "magnitude"}, "cusparselt default algorithm", False),
        ({"block_mask": "blocks"}, "dense", True),
    ],
)
def test_it_is_remarked_on_only_where_there_are_zeros(picks: dict[str, str], algorithm: str, told: bool) -> None:
    row = timed("mine", 64, 4, 1.0, algorithm=algorithm, picks=picks, role="ablation")
    assert ("zeros of W" in " ".join(remarks(run_of([row, timed(DENSE, 64, 4, 2.0, algorithm="dense")])))) == told


def test_what_a_verdict_on_two_passes_is_a_ratio_of_is_said_in_words() -> None:
    both = {"forward": PAIR, "training": PAIR}
    found = verdict(
        OURS, ratio=1.0, verdict="slower", blocks=both, optimizer="sgd", statement="it is worse in training"
    )
    table = verdict_table(run_of([found, verdict(OURS)]))
    assert table is not None
    assert [row[4] for row in table.rows] == ["forward ÷ training: 1.00", "0.90"]
    assert table.notes[0].startswith("yes: all of its 95 % interval is below one by more than 1%; no: above;")
    assert table.notes[1] == "forward ÷ training: time ÷ rival of a forward pass, over time ÷ rival of a training step"
    by_point, one_pass = (table for table in comparison(run_of([found, verdict(OURS, 128, hypothesis="H9")]).records))
    assert [column.name for column in by_point.columns][-3:] == ["forward ÷ training", "95 % interval", "answer"]
    assert by_point.rows[0][-1] == "no difference §"
    assert by_point.notes[0] == "of 1 point no difference at 1 (margin 1%)"
    assert [column.name for column in one_pass.columns][-3:] == ["ratio", "95 % interval", "verdict"]


def test_a_screen_says_what_its_two_numbers_are() -> None:
    timed_both = run_of([timed(OURS, 64, 4, 1.0), timed(DENSE, 64, 4, 2.0)])
    assert screen.LEGEND in screen.of_run(timed_both, "", "")
    assert screen.LEGEND not in screen.of_run(run_of([checked(OURS)]), "", "")
