"""How time grows with the number of ranks: an exponent that was planted is found, of runs that hold the same tests."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from inner_pytest import ROOT
from rows import run_of, saved, stepped, timed

from blockshock.__main__ import main
from blockshock.report.growth import growth_in_ranks
from blockshock.report.tables import Cell
from blockshock.saved import Run, read_run

OURS, DENSE = "block_shock gathered 1100", "dense_single"
SIZES, TOKENS = (64, 128, 256), (1, 16, 64)
H100, H200 = ["NVIDIA H100, 81559 MiB"] * 4, ["NVIDIA H200, 143771 MiB"] * 4
Time = Callable[[int, int, int], float]


def run(G: int, time: Time, sizes: tuple[int, ...] = SIZES, gpus: list[str] = H100, **more: object) -> Run:
    """Of rows that G ranks share, and of one on a single device."""
    infos = [timed(OURS, N, B, time(N, B, G), ranks=G, **more) for N in sizes for B in TOKENS]
    infos += [timed(DENSE, N, B, 1.0, ranks=1, span="one") for N in sizes for B in TOKENS]
    return run_of(infos, gpus=gpus)


def found(runs: list[Run]) -> list[dict[str, Cell]]:
    tables = list(growth_in_ranks(runs))
    return [dict(zip((c.name for c in table.columns), row, strict=True)) for table in tables for row in table.rows]


def power(N: int, B: int, G: int) -> float:
    return 1e-6 * N**2 * B**0.5 * G**-0.7


@pytest.mark.parametrize("counts", [(2, 4), (1, 2, 4), (2, 4, 8, 16)])
def test_the_exponent_of_a_power_law_is_found_in_runs_that_hold_the_same_tests(counts: tuple[int, ...]) -> None:
    (line,) = found([run(G, power) for G in counts])
    assert [line[name] for name in ("on", "method", "ranks", "layers", "points")] == [
        "NVIDIA H100",
        OURS,
        ", ".join(map(str, counts)),
        "64² to 256²",
        9,
    ]
    assert [line[name] for name in ("exponent of G", "at the smallest", "at the largest")] == pytest.approx([-0.7] * 3)
    assert line["± G"] == pytest.approx(0, abs=1e-9)


def test_runs_need_not_hold_the_same_points() -> None:
    """Larger layers on more ranks are no growth with ranks."""
    (line,) = found([run(2, power, (64, 128, 256, 4096)), run(4, power, (128, 256, 512))])
    assert line["exponent of G"] == pytest.approx(-0.7)
    assert (line["layers"], line["points"]) == ("128² to 256²", 6)
    assert not found([run(2, power, (64,)), run(4, power, (128,))])
    (line,) = found([run(G, power, sizes) for G, sizes in ((2, (64, 128)), (4, SIZES), (8, (128, 256)))])
    assert line["ranks"] == "2, 4, 8"
    assert [line["exponent of G"], line["± G"]] == pytest.approx([-0.7, 0], abs=1e-9)


def test_where_sizes_have_exponents_of_their_own_both_ends_are_told_and_the_interval_is_wide() -> None:
    def time(N: int, B: int, G: int) -> float:
        return {64: 1.0, 128: G**-0.5, 256: G**-1.0}[N]

    (line,) = found([run(G, time) for G in (2, 4)])
    assert [line[name] for name in ("exponent of G", "at the smallest", "at the largest")] == pytest.approx(
        [-0.5, 0, -1]
    )
    half = line["± G"]
    assert isinstance(half, float)
    assert half > 1
    (line,) = found([run(G, time, (64,)) for G in (2, 4)])
    assert (line["layers"], line["± G"]) == ("64²", math.inf), "it hangs on one size"


def test_layers_of_as_many_elements_are_two_layers() -> None:
    """4 N x N and N x 4 N, as of a transformer's feed-forward block."""
    times = {(128, 32): lambda G: 1 / G, (32, 128): lambda G: 1.0, (128, 128): lambda G: G**-0.5}
    runs = [
        run_of([timed(OURS, N, 4, time(G), ranks=G) | {"K": K} for (N, K), time in times.items()], gpus=H100)
        for G in (2, 4)
    ]
    (line,) = found(runs)
    assert (line["layers"], line["points"]) == ("32×128 to 128²", 3)
    assert [line[name] for name in ("at the smallest", "at the largest")] == pytest.approx([0, -0.5])
    assert float(str(line["± G"])) > 1, "they are not alike"


@pytest.mark.parametrize("counts", [(2, 4), (1, 2, 4, 8)])
def test_the_interval_holds_the_exponent_as_often_as_it_says(counts: tuple[int, ...]) -> None:
    """Where points of one size are off together, or, of more numbers of ranks, those of one session."""
    stream, held = random.Random(0), 0
    for _ in range(150):
        of_session = {G: 0 if len(counts) == 2 else stream.gauss(0, 0.1) for G in counts}
        off = {(N, G): of_session[G] + stream.gauss(0, 0.05) for N in SIZES for G in counts}
        (line,) = found([run(G, lambda N, B, G: power(N, B, G) * math.exp(off[N, G])) for G in counts])  # noqa: B023
        held += abs(line["exponent of G"] + 0.7) <= line["± G"]  # type: ignore[operator, arg-type]
    assert held >= 138


def test_what_was_measured_elsewhere_or_otherwise_is_not_set_beside_it() -> None:
    two = run(2, power)
    assert not found([two, run(4, power, gpus=H200)])
    assert not found([two, run(4, power, timing="cuda_events")])
    assert not found([two, run(4, power, flush="clean")])
    assert not found([two, two])
    wrong = replace(
        two, records=[bench | {"extra_info": bench["extra_info"] | {"wrong": "x"}} for bench in two.records]
    )
    assert not found([wrong, run(4, power)])


def test_steps_of_training_are_in_a_table_of_their_own() -> None:
    rows = [[timed(OURS, 64, 4, 1 / G, ranks=G), stepped(OURS, 64, 4, 2 / G, ranks=G)] for G in (1, 2)]
    forward, training = growth_in_ranks([run_of(infos, gpus=H100) for infos in rows])
    assert (forward.title, training.title) == tuple(
        f"How time grows with ranks: {what}" for what in ("Forward (phase 1)", "Training step (phase 3)")
    )
    assert [column.name for column in training.columns][:5] == ["on", "workload", "dtype", "optimizer", "method"]


def test_a_report_of_several_runs_has_it_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / str(G) / "run.json" for G in (2, 4)]
    for path, G in zip(paths, (2, 4), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(saved(run(G, power).infos, gpus=H100)))
    named = [*map(str, paths), "--to", str(tmp_path / "to")]
    for arguments in (["--tables", "across"], ["--format", "md"]):
        assert main(["report", *named, *arguments]) == 0
        shown = capsys.readouterr().out
        assert "How time grows with ranks: Forward (phase 1)" in shown
        assert "-0.70" in shown
    assert "How time grows with ranks" in (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    tables = {path.name for path in (tmp_path / "to" / "tables").iterdir()}
    assert "how-time-grows-with-ranks-forward-phase-1.csv" in tables
    each = {name for name in tables if name.endswith("time-over-the-best-dense-forward-phase-1.csv")}
    assert len(each) == 2, "files of runs that are called the same are told apart"
    assert main(["report", str(tmp_path)]) == 1
    assert "they differ in their ranks (2 and 4), and are reported beside each other" in capsys.readouterr().err


def test_official_runs_of_two_and_of_four_gpus_have_one() -> None:
    official = ROOT / "benchmark_results" / "official"
    (line, *_) = found([read_run(official / name) for name in ("0009_2xH100", "0010_4xH100")])
    assert (line["on"], line["ranks"], line["layers"]) == ("NVIDIA H100 80GB HBM3", "2, 4", "4096² to 16384²")
    assert line["at the largest"] < line["at the smallest"]  # type: ignore[operator]
