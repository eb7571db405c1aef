"""Are verdicts sound on these GPUs? Something against itself, and against itself slowed down by a known share.

The short form runs wherever GPU tests do; ``--soundness NAME`` runs the long one and saves it under docs/, of the rows
that ``--methods`` names with ``--kernels``, ``--masks`` and so on, or of dense ones. A compressed kernel on two GPUs:
``-m gpu2 --soundness 2xH100 --methods block_shock --kernels cusparselt --masks tile --storages compressed``.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import soundness
import torch
from gpus import needs_a_gpu, needs_two_gpus
from resolving import Resolve, resolve
from soundness import Point, most_by_chance

from blockshock.methods import Span, method_of
from blockshock.plugin import SETTINGS, Settings, options, timed_alone
from blockshock.plugin.cases import forward_grid, training_grid
from blockshock.ranks import Ranks, spawn

LONG = [(passes, N, B) for passes in ("forward", "training") for N in (4096, 8192, 16384) for B in (16, 1024)]
SHORT = [("forward", 4096, 16), ("forward", 8192, 1024), ("training", 4096, 16)]
TRIES, PLANTED = {True: 50, False: 6}, {True: 20, False: 4}
"""Of the long form and of the short one."""
METHODS = {1: "dense_single", 2: "dense_tp_row"}
"""By ranks, where none were asked for."""
SECONDS_BETWEEN_LINES = 5.0

pytest_plugins = ["pytester"]
__all__ = ["resolve"]

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


class Place(NamedTuple):
    """What is tried where; without a method, the dense one of so many GPUs."""

    passes: str
    N: int
    B: int
    method: str | None = None
    picks: Mapping[str, str] = MappingProxyType({})

    @property
    def id(self) -> str:
        return "-".join([self.passes, f"N{self.N}", f"B{self.B}", *filter(None, [self.method]), *self.picks.values()])

    def point(self, ranks: int) -> Point:
        """There, on so many ranks. Skips the test where the row does not take as many."""
        method = self.method or METHODS[ranks]
        if ranks > 1 and method_of(method)[0].span == Span.ONE:
            pytest.skip(f"{method} runs on one GPU: -m gpu tries it")
        return Point(method, ranks, *self[:3], picks=dict(self.picks))


def places(settings: Settings, long: bool, asked: bool) -> list[Place]:
    """All that is tried: of the long form with the rows that were asked for."""
    everywhere = [Place(*place) for place in (LONG if long else SHORT)]
    if not (long and asked):
        return everywhere
    grids = {"forward": forward_grid(settings), "training": training_grid(settings)}
    rows = {name: dict.fromkeys((case.method, *case.picks.items()) for case in grid) for name, grid in grids.items()}
    return [
        place._replace(method=method, picks=dict(picks))
        for place in everywhere
        for method, *picks in rows[place.passes]
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        config = metafunc.config
        long, asked = bool(config.getoption("--soundness")), options.get(config, "--methods") is not None
        found = places(config.stash[SETTINGS], long, asked)
        metafunc.parametrize("place", found, ids=[place.id for place in found])


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
def test_the_same_is_not_faster_than_itself(gpus: Study, place: Place, tell: Callable[[str], None]) -> None:
    point = place.point(gpus.ranks.size)
    soundness.study(point, gpus.ranks, TRIES[gpus.long], PLANTED[gpus.long], tell)
    gpus.points.append(point)
    print(soundness.as_line(point))
    # An interval of 95 % lies beyond the margin in far fewer tries; in the gate, which is run often, one may do so.
    assert point.judged <= (0 if gpus.long else most_by_chance(len(point.against_itself), 0.002)), point.against_itself
    assert point.different <= most_by_chance(len(point.against_itself), 0.05)


@pytest.mark.bench
@timed_alone
@on_gpus
def test_intervals_hold_the_truth_as_often_as_they_say(gpus: Study) -> None:
    if not gpus.points:
        pytest.skip("nothing was tried: run this file as a whole")
    told = "\n".join([soundness.summary(gpus.points), *map(soundness.as_line, gpus.points)])
    tries, different = sum(len(one.against_itself) for one in gpus.points), sum(one.different for one in gpus.points)
    # The short form says nothing of a machine that scatters by more than what was planted: there no verdict finds it.
    tried = [
        (high < 1)
        for one in gpus.points
        for value, low, high in one.planted
        if gpus.long or (high - low) / 2 < one.share * value
    ]
    assert different <= most_by_chance(tries, 0.05), told
    assert sum(tried) >= (0.95 * len(tried) if gpus.long else len(tried) - most_by_chance(len(tried), 0.05)), told


# The study itself, on a CPU.


def _waits(cycles: int) -> None:
    until = time.perf_counter() + cycles / 1.5e9
    while time.perf_counter() < until:
        pass


def _pair_on_a_cpu(*args: Any) -> soundness.PairBlocks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_sleep", _waits)
        return soundness.pair_of_same(*args)


COMPRESSED = {"kernel": "gathered", "mask": "1100", "storage": "compressed"}


@pytest.mark.parametrize(
    ("passes", "method", "picks"),
    [("forward", "dense_tp_row", {}), ("training", "dense_tp_row", {}), ("training", "block_shock", COMPRESSED)],
    ids=["forward", "training", "compressed"],
)
def test_a_study_fills_a_point(
    passes: str, method: str, picks: dict[str, str], cpu_ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "pair_of_same", _pair_on_a_cpu)
    monkeypatch.setattr(soundness, "LONG_CALL", 0.0)
    point, told = Place(passes, 64, 4, method, picks).point(2), []
    soundness.study(point, cpu_ranks, 2, 2, told.append, ("sync", 5, 1, False))
    assert [len(point.against_itself), len(point.planted)] == [2, 2]
    assert point.share == 0.01
    assert point.median_us > 0
    assert len(told) == 4
    label = " ".join([method, *picks.values()])
    assert told[0].startswith(f"{label} {passes} N=64 B=4: 1 of 2, different ")


def test_the_long_form_takes_the_rows_that_were_asked_for_and_the_short_one_does_not(resolve: Resolve) -> None:
    settings = resolve(
        *(
            "--device=cpu",
            "--ranks=2",
            "--methods=block_shock,dense_single",
            "--kernels=gathered",
            "--masks=1100",
            "--storages=compressed",
        )
    )
    asked = [place.id for place in places(settings, long=True, asked=True)]
    assert len(asked) == 2 * len(LONG) == len(set(asked))
    assert asked[:2] == ["forward-N4096-B16-dense_single", "forward-N4096-B16-block_shock-gathered-1100"]
    assert "training-N16384-B1024-block_shock-gathered-1100-compressed" in asked
    dense = [place.id for place in places(settings, long=True, asked=False)]
    assert dense == [f"{passes}-N{N}-B{B}" for passes, N, B in LONG]
    assert [tuple(place[:3]) for place in places(settings, long=False, asked=True)] == SHORT
    with pytest.raises(pytest.skip.Exception, match="dense_single runs on one GPU"):
        Place("forward", 64, 4, "dense_single").point(2)


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
    assert most_by_chance(6, 0.002) == 1
