"""How sound verdicts are where they are made: something against itself, and against itself slowed down a little.

`pytest tests/test_same_against_itself.py --soundness NAME` saves what it finds as `docs/soundness/NAME.json`, and
writes `docs/soundness.md` anew from all such files: of dense rows, or of those that ``--methods`` and the options of
its axes ask for. Without the option a short form runs on dense rows, and nothing is written.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

import torch

from blockshock.machine import environment
from blockshock.measure import timing
from blockshock.phases.builds import PairBlocks, Prepare, in_blocks, protocol_of_ranks
from blockshock.phases.case import Built, Case
from blockshock.phases.forward import forward_pass
from blockshock.phases.train import Step
from blockshock.ranks import Ranks
from blockshock.saved.pairs import LONG_CALL, Ratio, ratio_of_blocks

FOLDER = Path(__file__).parent.parent / "docs" / "soundness"
TIMED = ("cuda_graph", 100, 10, True)
"""As verdicts are timed on GPUs unless options say otherwise."""
FEW_CYCLES = 10_000
"""Both calls of a planted pair end with a kernel that waits, so that they differ in how long it waits alone. On two
ranks the first 2 µs of waiting after an all-reduce cost nothing: the graph ends later than that anyway."""
CHANCE = 0.999
CLOCKS = (0.2e9, 3e9)
"""Between these, in Hz, every GPU's clock is."""
INTRODUCTION = """# How sound the verdicts are

A verdict rests on an interval that is to hold the true ratio in 95 % of cases. Here that is tried on GPUs: something is
compared with itself, built anew for each try, and may be called different in 5 % of them, chance counted, but never
`faster` or `slower`. Then one of the two is slowed down by a known share, by a kernel that waits: 1 % of a call of
100 µs or more, 3 % of a shorter one. That is found where the interval leaves out one. Width: high less low, the median
of all tries. `pytest tests/test_same_against_itself.py -m gpu2 --soundness NAME` made it (on one GPU:
`-m gpu --ranks 1`); of others than dense rows with `--methods`, `--kernels` and what else picks them.
"""


@dataclass
class Point:
    """What was tried at one point, as it is saved. Ratios are (value, low, high)."""

    method: str
    ranks: int
    passes: str
    N: int
    B: int
    median_us: float = math.nan
    against_itself: list[tuple[float, float, float]] = field(default_factory=list)
    share: float = math.nan
    planted: list[tuple[float, float, float]] = field(default_factory=list)
    picks: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.case.label

    @property
    def name(self) -> str:
        return f"{self.label} {self.passes} N={self.N} B={self.B}"

    @property
    def case(self) -> Case:
        optimizer = "sgd" if self.passes == "training" else None
        return Case(self.method, self.picks, "gaussian", self.N, self.N, self.B, "bf16", optimizer=optimizer)

    @property
    def different(self) -> int:
        return sum(Ratio(*ratio).differs for ratio in self.against_itself)

    @property
    def judged(self) -> int:
        """How often something was called faster or slower than itself."""
        return sum(Ratio(*ratio).verdict() in ("faster", "slower") for ratio in self.against_itself)

    @property
    def found(self) -> int:
        """How often the planted slowdown was seen, as one: it is the second of the pair that has it."""
        return sum(high < 1 for _, _, high in self.planted)

    @property
    def width(self) -> float:
        return statistics.median(high - low for _, low, high in self.against_itself)


def pair_of_same(case: Case, cycles: tuple[int, int] | None, *timed: object) -> PairBlocks:
    """A case against itself, both followed by a kernel that waits for so many cycles; all ranks call it together."""
    prepare: Prepare = forward_pass if case.optimizer is None else Step
    both = (prepare, prepare) if cycles is None else tuple(partial(_slowed, prepare, count) for count in cycles)
    with torch.inference_mode(case.optimizer is None):
        return in_blocks((case, case), both, protocol_of_ranks(*timed))[0]  # type: ignore[arg-type]


def _slowed(prepare: Prepare, cycles: int, case: Case, built: Built) -> timing.Call:
    call = prepare(case, built)

    def slowed() -> None:
        call()
        torch.cuda._sleep(cycles)

    return slowed


def _slowest(per_rank: list[PairBlocks]) -> tuple[list[list[float]], list[list[float]], int]:
    first, second = (
        [timing.slowest(list(block)) for block in zip(*(getattr(one, which) for one in per_rank), strict=True)]
        for which in ("first", "second")
    )
    return first, second, per_rank[0].pilot


def _median(blocks: list[list[float]]) -> float:
    return statistics.median(seconds for block in blocks for seconds in block)


def study(
    point: Point, ranks: Ranks, tries: int, planted: int, tell: Callable[[str], None], timed: tuple[object, ...] = TIMED
) -> None:
    """Fill a point with so many tries of both kinds. ``tell`` is told how far it is."""

    def times(seed: int, cycles: tuple[int, int] | None = None) -> tuple[list[list[float]], list[list[float]], int]:
        case = Case(**asdict(point.case) | {"seed": seed})
        return _slowest(ranks.run(pair_of_same, case, cycles, *timed))

    medians = []
    for seed in range(tries):
        first, *others = times(seed)
        medians.append(_median(first))
        ratio = ratio_of_blocks(first, *others)
        point.against_itself.append((ratio.value, ratio.low, ratio.high))
        tell(f"{point.name}: {seed + 1} of {tries}, different {point.different}")
    point.median_us = statistics.median(medians) * 1e6
    if not planted:
        return
    # How fast the cycles are where the call runs: a GPU under load lowers its clock.
    many = int(point.median_us * 1e-6 * 0.3 * 1.5e9)
    calls, slower = map(_median, times(tries, (FEW_CYCLES, FEW_CYCLES + many))[:2])
    clock = many / min(max(slower - calls, many / CLOCKS[1]), many / CLOCKS[0])
    point.share = 0.01 if calls >= LONG_CALL else 0.03
    cycles = round(point.share * calls * clock)
    for seed in range(planted):
        ratio = ratio_of_blocks(*times(seed, (FEW_CYCLES, FEW_CYCLES + cycles)))
        point.planted.append((ratio.value, ratio.low, ratio.high))
        tell(f"{point.name}: {point.share:.0%} slower, {seed + 1} of {planted}, found {point.found}")


def most_by_chance(tries: int, probability: float) -> int:
    """How many of so many tries happen at most, with a certainty of 99.9 %, at this probability of each."""
    total = 0.0
    for count in range(tries + 1):
        total += math.comb(tries, count) * probability**count * (1 - probability) ** (tries - count)
        if total >= CHANCE:
            return count
    return tries


def save(name: str, points: Iterable[Point]) -> None:
    """Save what was found under a name, with what was found at other points before, and write the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    before = [Point(**saved) for saved in json.loads(path.read_text())["points"]] if path.exists() else []
    by_name = {(point.ranks, point.name): point for point in [*before, *points]}
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    used = environment.gpus()[: max(point.ranks for point in by_name.values())]
    told = {"where": ", ".join(used), "versions": versions, "date": f"{date.today()}"}
    path.write_text(json.dumps(told | {"points": [asdict(point) for point in by_name.values()]}, indent=1) + "\n")
    FOLDER.with_suffix(".md").write_text(page())


def page() -> str:
    """The page, from all that was saved."""
    parts = [INTRODUCTION.strip()]
    for path in sorted(FOLDER.glob("*.json")):
        saved = json.loads(path.read_text())
        points = [Point(**point) for point in saved["points"]]
        parts.append(f"## {path.stem}: {saved['where']}")
        parts.append(f"{saved['versions']}, {saved['date']}; `soundness/{path.name}`. {summary(points)}")
        header = "row | pass | N | B | median, µs | different | `faster`, `slower` | width | planted | found"
        lines = [header, "|".join("---" for _ in header.split("|")), *map(as_line, points)]
        parts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def summary(points: list[Point]) -> str:
    tries, planted = sum(len(point.against_itself) for point in points), sum(len(point.planted) for point in points)
    different, found = sum(point.different for point in points), sum(point.found for point in points)
    return (
        f"Against itself: different in {different} of {tries} (by chance at most {most_by_chance(tries, 0.05)}), "
        f"`faster` or `slower` in {sum(point.judged for point in points)}. Slowed down: found in {found} of {planted}."
    )


def as_line(point: Point) -> str:
    tries, planted = len(point.against_itself), len(point.planted)
    cells = [point.label, point.passes, point.N, point.B, f"{point.median_us:.1f}", f"{point.different} of {tries}"]
    shown = [f"{point.share:.0%}", f"{point.found} of {planted}"] if planted else ["–", "–"]
    return " | ".join(map(str, [*cells, point.judged, f"{point.width:.2%}", *shown]))
