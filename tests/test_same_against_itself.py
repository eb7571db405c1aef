"""Are verdicts sound on these GPUs? Something against itself, and against itself slowed down by a known share.

The short form runs wherever GPU tests do; ``--soundness NAME`` runs the long one and saves it under docs/.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundness
import torch
from gpus import needs_a_gpu, needs_two_gpus
from soundness import Point, most_by_chance

from blockshock.plugin import timed_alone
from blockshock.ranks import Ranks, spawn

LONG = [(passes, N, B) for passes in ("forward", "training") for N in (4096, 8192, 16384) for B in (16, 1024)]
SHORT = [("forward", 4096, 16), ("forward", 8192, 1024), ("training", 4096, 16)]
TRIES, PLANTED = {True: 50, False: 6}, {True: 20, False: 4}
"""Of the long form and of the short one."""
METHODS = {1: "dense_single", 2: "dense_tp_row"}
"""By ranks."""
SECONDS_BETWEEN_LINES = 5.0

on_gpus = pytest.mark.parametrize(
    "gpus",
    [
        pytest.param(1, marks=[pytest.mark.gpu, needs_a_gpu], id="one-gpu"),
        pytest.param(2, marks=[pytest.mark.gpu2, needs_two_gpus], id="two-gpus"),
    ],
    indirect=True,
    scope="module",
)


class Study:
    """The ranks of one number of GPUs, and what was found on them."""

    def __init__(self, ranks: Ranks, long: bool) -> None:
        self.ranks, self.long = ranks, long
        self.points: list[Point] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        places = LONG if metafunc.config.getoption("--soundness") else SHORT
        metafunc.parametrize("place", places, ids=[f"{passes}-N{N}-B{B}" for passes, N, B in places])


@pytest.fixture(scope="module")
def gpus(request: pytest.FixtureRequest) -> Iterator[Study]:
    name = request.config.getoption("--soundness")
    with spawn(request.param, "cuda") as ranks:
        found = Study(ranks, bool(name))
        yield found
    if name and found.points:
        soundness.save(name, found.points)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Shows a line on the terminal, now and then."""
    last = time.monotonic()

    def shown(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            with capsys.disabled():
                print(f"\n{line}", end="", flush=True)

    return shown


@pytest.mark.bench
@timed_alone
@on_gpus
def test_the_same_is_not_faster_than_itself(
    gpus: Study, place: tuple[str, int, int], tell: Callable[[str], None]
) -> None:
    point = Point(METHODS[gpus.ranks.size], gpus.ranks.size, *place)
    soundness.study(point, gpus.ranks, TRIES[gpus.long], PLANTED[gpus.long], tell)
    gpus.points.append(point)
    print(soundness.as_line(point))
    assert point.judged == 0
    assert point.different <= most_by_chance(len(point.against_itself), 0.05)


@pytest.mark.bench
@timed_alone
@on_gpus
def test_intervals_hold_the_truth_as_often_as_they_say(gpus: Study) -> None:
    if not gpus.points:
        pytest.skip("nothing was tried: run this file as a whole")
    told = "\n".join([soundness.summary(gpus.points), *map(soundness.as_line, gpus.points)])
    tries, different = sum(len(one.against_itself) for one in gpus.points), sum(one.different for one in gpus.points)
    planted, found = sum(len(one.planted) for one in gpus.points), sum(one.found for one in gpus.points)
    assert different <= most_by_chance(tries, 0.05), told
    assert found >= (0.95 * planted if gpus.long else planted - most_by_chance(planted, 0.05)), told


# The study itself, on a CPU.


def _waits(cycles: int) -> None:
    until = time.perf_counter() + cycles / 1.5e9
    while time.perf_counter() < until:
        pass


def _pair_on_a_cpu(*args: Any) -> soundness.PairBlocks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_sleep", _waits)
        return soundness.pair_of_same(*args)


@pytest.mark.parametrize("passes", ["forward", "training"])
def test_a_study_fills_a_point(passes: str, cpu_ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "pair_of_same", _pair_on_a_cpu)
    monkeypatch.setattr(soundness, "LONG_CALL", 0.0)
    point, told = Point("dense_tp_row", 2, passes, 64, 4), []
    soundness.study(point, cpu_ranks, 2, 2, told.append, ("sync", 5, 1, False))
    assert [len(point.against_itself), len(point.planted)] == [2, 2]
    assert point.share == 0.01
    assert point.median_us > 0
    assert len(told) == 4
    assert told[0].startswith(f"dense_tp_row {passes} N=64 B=4: 1 of 2, different ")


def test_what_was_found_is_saved_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "FOLDER", tmp_path / "docs" / "soundness")
    same = [(1.0, 0.99, 1.01), (0.999, 0.998, 0.9995), (0.97, 0.96, 0.98)]
    point = Point("dense_tp_row", 2, "forward", 4096, 16, 27.0, same, 0.03, [(0.97, 0.96, 0.98), (0.97, 0.93, 1.01)])
    assert (point.different, point.judged, point.found) == (2, 1, 1)
    soundness.save("2xH100", [point])
    soundness.save("2xH100", [Point("dense_single", 1, "forward", 4096, 16, 27.0, same[:1])])
    saved = json.loads((tmp_path / "docs" / "soundness" / "2xH100.json").read_text())
    assert [one["ranks"] for one in saved["points"]] == [2, 1], "what was found at other points is kept"
    page = (tmp_path / "docs" / "soundness.md").read_text()
    assert "| dense_tp_row | forward | 4096 | 16 | 27.0 | 2 of 3 | 1 | 2.00% | 3% | 1 of 2 |" in page
    assert "different in 2 of 4 (by chance at most 2), `faster` or `slower` in 1. Slowed down: found in 1 of 2." in page


def test_chance_is_counted() -> None:
    assert [most_by_chance(tries, 0.05) for tries in (0, 6, 18, 600)] == [0, 3, 5, 48]
