"""What a report says of how a run was measured, and that it says it on any terminal, in any folder."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import LIGHT_INFO, LIGHT_OPTIONS, ROOT, light_suite, python_path
from rows import Info, checked, limited, run_of, saved, stepped, timed, verdict

from blockshock.__main__ import main
from blockshock.report.across import across
from blockshock.report.comparison import comparison
from blockshock.report.plain import plain
from blockshock.report.remarks import flushes, remarks
from blockshock.report.run_tables import run_tables
from blockshock.report.tables import Table
from blockshock.saved.results import Run, read_run

FULL = Path("/dev/full")
OFFICIAL = ROOT / "benchmark_results" / "official"
LONG = "t" * 80
OURS = "block_shock gathered 1100"
CEILINGS: dict[str, Any] = {
    "memory_bytes_per_s": 4.2e12,
    "cache_bytes": 50 << 20,
    "dense_flops_per_s": {"bf16": 8e14},
    "sparse_flops_per_s": {},
    "all_reduce": {"latency_s": 9e-6, "bytes_per_s": 2.87e11},
    "all_gather": {"latency_s": 9e-6, "bytes_per_s": 2.87e11},
    "launch_s": 4e-6,
}


def table(run: Run, title: str) -> Table:
    (found,) = [table for table in run_tables(run) if table.title.startswith(title)]
    return found


def test_the_spread_over_builds_stands_beside_the_median() -> None:
    several = timed(OURS, 64, 4, 1.0, builds_p50_ms=[0.98, 1.0, 1.03], p95_ms=1.027)
    run = run_of([several, timed("dense_single", 64, 4, 2.0, builds_p50_ms=[2.0]), timed("dense_tp_row", 64, 4, 4.0)])
    assert [row[7] for row in table(run, "Time over the best dense").texts()] == ["2.5%", "–", "–"]
    (times,) = comparison(run.records)
    assert [column.name for column in times.columns][:4] == ["method", "p50 ms", "builds ±", "p95 ms"]
    assert [row[2] for row in times.texts()] == ["2.5%", "–", "–"]
    step = stepped(OURS, 64, 4, 1.0, builds_p50_ms=[0.9, 1.1], p95_ms=1.09)
    (steps,) = comparison(run_of([step]).records)
    assert steps.texts()[0][:4] == [OURS, "1.0000", "10.0%", "1.0900"]


def test_a_run_says_how_it_was_flushed_if_that_is_in_its_times() -> None:
    zeroed = [timed(OURS, 64, 4, 1.0, l2_flushed=True)]
    clean = [timed(OURS, 64, 4, 1.0, l2_flushed=True, flush="clean")]
    none = [timed(OURS, 64, 4, 1.0, l2_flushed=False), timed(OURS, 64, 4, 1.0, l2_flushed=True, device="cpu")]
    says = "flushed by zeroing: times below 0.2 ms, and ratios of such, contain microseconds of writing back"
    assert list(remarks(run_of(zeroed))) == [says]
    assert list(remarks(run_of(clean))) == list(remarks(run_of(none))) == []
    both = "1 result was flushed so, 1 cleanly: not to be compared below 0.2 ms"
    assert list(remarks(run_of(zeroed + clean))) == [says, both]
    bare = "1 without an interval: a single build, or none, was saved"
    assert across([run_of(zeroed), run_of(clean)]).notes == [bare, says, both]
    assert across([run_of(clean), run_of(clean)]).notes == [bare]
    older = {name: value for name, value in verdict(OURS).items() if name not in ("l2_flushed", "flush")}
    judged = older, older | {"l2_flushed": False}, verdict(OURS)
    assert [list(flushes([run_of([one])])) for one in judged] == [[says], [], []], "older ones do not say how"


def test_each_official_run_of_before_says_that_it_was_flushed_by_zeroing_and_no_later_one() -> None:
    """As their README says of them, with the numbers of the first and the last."""
    told = re.search(
        r"\*\*(\d+) to (\d+) were made before", (OFFICIAL.parent / "README.md").read_text(encoding="utf-8")
    )
    assert told is not None
    for path in sorted(OFFICIAL.iterdir()):
        before = told[1] <= path.name[:4] <= told[2]
        assert any(line.startswith("flushed by zeroing") for line in remarks(read_run(path))) == before, path.name


@pytest.mark.parametrize(
    ("lacking", "name"),
    [
        ({"all_reduce": None}, "all reduce"),
        ({"memory_bytes_per_s": None}, "memory bytes"),
        ({"launch_s": None}, "launch s"),
        ({"dense_flops_per_s": {"bf16": None}}, "dense flops per s bf16"),
        ({"dense_flops_per_s": {}}, "dense bf16"),
        ({"dense_flops_per_s": None}, "dense flops"),
    ],
)
def test_a_ceiling_that_is_missing_is_a_dash_and_one_warning(lacking: Info, name: str, tmp_path: Path) -> None:
    parts = {"products": {"p50_ms": 0.5}, "communication": {"p50_ms": 0.2, "limit_ms": None, "of_limit": None}}
    infos = [
        timed("block_shock auto 1100", 8192, 256, 1.0, of_limit=None, limits=parts),
        timed(OURS, 8192, 256, 1.0, limits={}),
        timed("dense_single", 8192, 256, 1.0, **limited(0.5), work={"flops": 1e12, "memory_bytes": 1e8}),
    ]
    (tmp_path / "run.json").write_text(json.dumps(saved(infos, ceilings=CEILINGS | lacking)))
    run = read_run(tmp_path / "run.json")
    assert run.left_out == {}
    told = f"ceilings that could not be measured: {name}; 2 results have no limit, a dash stands for it"
    assert list(remarks(run)) == [told]
    shares = [row[7:10] for row in table(run, "Share of the limit").texts()]
    assert sorted(shares) == [["0.6000", "60%", "compute"], ["–", "–", "–"], ["–", "–", "–"]]
    (times,) = comparison(run.records)
    assert sorted(row[5] for row in times.texts()) == ["60%", "–", "–"]
    measured = [row[1] for row in table(run, "Measured ceilings").texts()]
    assert ("–" in measured) == (lacking != {"dense_flops_per_s": {}})
    assert main(["report", str(tmp_path / "run.json"), "--to", str(tmp_path / "to")]) == 0
    assert "could not be measured" in (tmp_path / "to" / "report.html").read_text(encoding="utf-8")


def test_a_row_that_has_a_limit_misses_no_ceiling_of_its_dtype() -> None:
    """Blocks and networks on a CPU are in another dtype than the session's, and measured beside it."""
    fp32 = timed(OURS, 64, 4, 1.0, **limited(0.5)) | {"dtype": "fp32"}
    assert list(remarks(run_of([fp32], ceilings=CEILINGS))) == []
    (told,) = remarks(run_of([fp32, fp32 | {"limits": {}, "B": 8, "of_limit": None}], ceilings=CEILINGS))
    assert told.startswith("ceilings that could not be measured: dense fp32; 1 result has no limit")


def test_a_difference_of_medians_below_zero_is_no_time() -> None:
    (table,) = comparison(run_of([stepped("dense_single", 64, 4, 1.0, backward_p50_ms=-0.5)]).records)
    at = [column.name for column in table.columns].index("backward")
    assert [row[at - 1 : at + 1] for row in table.texts()] == [["0.1000", "–"]]


def test_what_ranks_share_wants_one_device_beside_it() -> None:
    shared = [timed("block_shock", 64, B, 1.0) for B in (4, 16)] + [timed("dense_tp_row", 64, B, 2.0) for B in (4, 16)]
    told = "no dense layer on one device was timed{}: it may beat the best dense named here"
    assert told.format("") in list(remarks(run_of(shared)))
    assert told.format(" at 1 point") in list(remarks(run_of([*shared, timed("dense_single", 64, 4, 3.0)])))
    both = [timed("dense_single", 64, B, 3.0) for B in (4, 16)]
    judged = [verdict("block_shock", 64, B) for B in (4, 16)]
    of_one = [timed("pruned", 64, 4, 1.0, span="one"), timed("dense_tp_row", 64, 4, 2.0)]
    for infos in ([*shared, *both], [*shared, *judged], of_one):
        assert not [line for line in remarks(run_of(infos)) if "one device" in line]


def test_an_overlap_that_hides_nothing_is_named() -> None:
    def overlapped(label: str, N: int, seen: float, algorithm: str = "dense, combined by overlap:chunks=4") -> Info:
        parts = {"stages": {"reduce": {"p50_ms": seen}}, "alone": {"combine": {"p50_ms": 0.2}}}
        return timed(label, N, 16, 1.0) | parts | {"algorithm": algorithm}

    rows = [overlapped("dense_tp_row auto", 64, 0.19), overlapped("dense_tp_row auto", 128, 0.1)]
    rows += [overlapped(OURS, 64, 0.3), overlapped("dense_tp_col auto", 64, 0.3, "dense, combined by two_shot")]
    (told,) = [line for line in remarks(run_of(rows)) if "overlap" in line]
    assert told.startswith(f"overlap hid nothing of what it sends in dense_tp_row auto (64², B = 16), {OURS} (64²")
    bare = [timed("dense_tp_row auto", 64, 16, 1.0) | {"algorithm": "dense, combined by overlap"}]
    assert not [line for line in remarks(run_of([*rows[1:2], *bare])) if "overlap" in line]


def test_one_rank_has_no_collectives_to_miss() -> None:
    alone = CEILINGS | {"all_reduce": None, "all_gather": None}
    assert list(remarks(run_of([timed(OURS, 64, 4, 1.0, ranks=1, **limited(0.5))], ceilings=alone))) == []


def test_errors_of_gradients_are_shown_loss_by_loss() -> None:
    small, large = (
        {"error_ratio": 1.1, "relative_error": 1e-3, "max_error": of, "of_bound": 0.5} for of in (1e-7, 1e-2)
    )
    losses = {"sum": large, "mse_zero": small}
    run = run_of([checked(label, phase=2, losses=losses, **large) for label in ("dense_single", OURS)])
    (grouped,) = comparison(run.records)
    both = table(run, "Errors of grad_X")
    for shown, loss, error in ((grouped, 1, 4), (both, 6, 9)):
        assert sorted((row[loss], row[error]) for row in shown.texts()) == [
            *[("mse_zero", "1.00e-07")] * 2,
            *[("sum", "1.00e-02")] * 2,
        ]
    (forward,) = comparison(run_of([checked(OURS)]).records)
    assert "loss" not in [column.name for column in forward.columns]


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """This Python in a process of its own, with the project on its path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "FORCE_COLOR"))}
    env |= {"PYTHONPATH": python_path(ROOT), **environment}
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_report_is_printed_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    infos = [timed(f"{OURS} ‡ 名前", 64, 4, 1.0, clock="slept"), timed("dense_single", 64, 4, 2.0), verdict(OURS)]
    path = tmp_path / "run–‡.json"
    path.write_text(json.dumps(saved([*infos, checked(OURS, error_ratio=1e9)], gpus=["µ", "µ"])), encoding="utf-8")
    for arguments in (("--tables",), ("--format", "md"), ()):
        done = child("-m", "blockshock", "report", str(path), *arguments, PYTHONIOENCODING=encoding)
        assert done.returncode == 1, "a check failed"
        assert done.stderr == ""
        assert f"{plain('÷', encoding)} " in done.stdout
        if encoding == "ascii":
            assert done.stdout.isascii()
            assert ("2 x u, bf16, CUDA graphs, random W (gaussian), versions unknown" in done.stdout) == (
                "--tables" not in arguments
            )
            assert f"{OURS} # ??" in done.stdout or not arguments


def test_rows_for_a_program_are_utf_8_whatever_a_terminal_would_take(tmp_path: Path) -> None:
    path = tmp_path / "run–‡.json"
    path.write_text(json.dumps(saved([timed(f"{OURS} 名前", 64, 4, 1.0)])), encoding="utf-8")
    for encoding in ("ascii", "cp1252", "utf-16"):
        for form in ("csv", "json"):
            command = [sys.executable, "-m", "blockshock", "report", str(path), "--format", form]
            env = os.environ | {"PYTHONPATH": python_path(ROOT), "PYTHONIOENCODING": encoding}
            done = subprocess.run(command, env=env, capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")
            (row,) = (
                json.loads(done.stdout) if form == "json" else csv.DictReader(done.stdout.decode("utf-8").splitlines())
            )
            assert (row["run"], row["label"]) == (str(path), f"{OURS} 名前")
            assert "builds ±" in row


@pytest.mark.skipif(not FULL.exists(), reason=f"needs {FULL}")
@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [(), ("--tables",), *(("--format", form) for form in ("md", "csv", "json"))])
def test_a_full_disk_is_one_line_and_an_exit_status(
    arguments: tuple[str, ...], unbuffered: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(saved([timed(OURS, 64, 4, 1.0)])))
    env = os.environ | {"PYTHONPATH": python_path(ROOT)} | unbuffered
    command = [sys.executable, "-m", "blockshock", "report", str(path), *arguments]
    with FULL.open("wb") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "cannot write the output: No space left on device\n")


def test_no_output_at_all_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(saved([timed(OURS, 64, 4, 1.0)])))
    command = f"exec {shlex.quote(sys.executable)} -m blockshock report {shlex.quote(str(tmp_path / 'run.json'))} >&-"
    env = os.environ | {"PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=env, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_that_is_not_of_the_output_is_not_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> Path:
        raise OSError(errno.EIO, "Input/output error", "elsewhere")

    monkeypatch.setattr("blockshock.report.command.latest_run", lost)
    with pytest.raises(OSError, match="elsewhere"):
        main(["report"])


def test_what_to_type_next_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "it's mine.json"
    path.write_text(json.dumps(saved([timed(OURS, 64, 4, 1.0)])))
    assert main(["report", str(path)]) == 0
    told = " ".join(capsys.readouterr().out.split()).partition("more: ")[2].partition(" --tables")[0]
    assert shlex.split(told) == ["python", "-m", "blockshock", "report", str(path)]


def test_what_can_be_written_is_left_as_it_is() -> None:
    assert plain("2 × ÷ – ≥ ‡", "utf-8") == plain("2 × ÷ – ≥ ‡", None) == "2 × ÷ – ≥ ‡"
    assert plain("2 × ÷ – ≥ ‡", "latin-1") == "2 × ÷ - >= #"
    assert plain("2 × ÷ – ≥ ‡ 名\ud800", "ascii") == "2 x / - >= # ??"


def test_a_session_keeps_its_summary_where_output_is_not_utf_8(tmp_path: Path) -> None:
    light_suite(tmp_path)
    test = tmp_path / "test_light.py"
    test.write_text(test.read_text().replace(LIGHT_INFO, f"{checked(OURS, error_ratio=3.0)!r}"))
    done = child("-m", "pytest", *LIGHT_OPTIONS, f"--rootdir={tmp_path}", str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " / dense's " in done.stdout.partition("= Block-Shock =")[2]
    assert f"{OURS} #" in done.stdout
    assert "3 passed" in done.stdout
