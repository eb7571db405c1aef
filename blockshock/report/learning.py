"""What recipes learn, beside dense training of the same seeds on the same tokens: step by step, and second by second.

Two claims about each: its step is faster; and H11, after the same tokens it has lost no more than a margin. Intervals
are Student's over the seeds, each a model of its own, of differences and ratios seed by seed; one seed has none.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blockshock.report.tables import Cell, Column, Info, Table, columns, footnotes, mark, ratio
from blockshock.saved import Run, or_inf, section_of, several, sound
from blockshock.saved.pairs import Ratio, quantile, ratio_of_blocks

PLACE = ("workload", "steps", "B", "dtype", "data", "seed")
DENSE = "dense"
UNKNOWN = "one seed"
"""In the place of a verdict that one seed cannot give."""
PAYS = "sparse training pays"
ANSWERS = {"faster": "yes", "slower": "no", "tie": "no"}


@dataclass(frozen=True)
class Beside:
    """A recipe beside dense training.

    Attributes:
        step: its time over the dense one's, with the interval over seeds where there are several.
        lost: bits a prediction more, after the same tokens; ``low`` and ``high`` likewise.
        at_equal_time: the same when both have trained for as long as the quicker of them did in all.
    """

    step: float
    lost: float
    low: float | None
    high: float | None
    ratio: Ratio | None
    at_equal_time: float
    margin: float

    @property
    def faster(self) -> str:
        """Whether its step is, in a word."""
        return UNKNOWN if self.ratio is None else ANSWERS.get(self.ratio.verdict(), "undecided")

    @property
    def as_good(self) -> str:
        """H11, in a word."""
        if self.low is None or self.high is None:
            return UNKNOWN
        return "yes" if self.high <= self.margin else "no" if not self.low <= self.margin else "undecided"


def beside(row: Info, dense: Info) -> Beside:
    """A row of learning beside the dense one of its place; of as many seeds as both have."""
    pairs = list(zip(_last(row), _last(dense), strict=False))
    lost = [ours - theirs for ours, theirs in pairs]
    steps = [row["step_ms"][: len(lost)], dense["step_ms"][: len(lost)]]
    mean, half = _mean(lost), None
    ratio = None
    if len(lost) > 1:
        half = quantile(len(lost) - 1) * _scatter(lost) / math.sqrt(len(lost))
        ratio = ratio_of_blocks([[ms] for ms in steps[0]], [[ms] for ms in steps[1]])
    ours, theirs = map(_mean, steps)
    until = min(_seconds(row), _seconds(dense))
    return Beside(
        step=ours / theirs if ratio is None else ratio.value,
        lost=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        ratio=ratio,
        at_equal_time=_bits_after(row, until) - _bits_after(dense, until),
        margin=row["bits_margin"],
    )


def _mean(values: Iterable[float]) -> float:
    """Also of what holds inf and −inf, which is NaN."""
    found = list(values)
    return sum(found) / len(found)


def _scatter(values: list[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) * (value - mean) for value in values) / (len(values) - 1))


def _last(row: Info) -> list[float]:
    return [bits[-1] for bits in row["curve_bits"]]


def _seconds(row: Info) -> float:
    return _mean(seconds[-1] for seconds in row["curve_seconds"])


def _bits_after(row: Info, seconds: float) -> float:
    """Of so many seconds of training, the mean over seeds; on a straight line between two looks."""
    curves = zip(row["curve_seconds"], row["curve_bits"], strict=False)
    return _mean(_between([0.0, *at], [row["begin_bits"], *bits], seconds) for at, bits in curves)


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1, len(ys) - 1)
    wide = xs[right] - xs[right - 1]
    share = min(max((x - xs[right - 1]) / wide, 0.0), 1.0) if wide > 0 else 1.0
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


_NUMBERS = {
    "steps": "d",
    "seeds": "d",
    "bits": ".3f",
    "more than dense": "+.3f",
    "± ": ".3f",
    "ms a step": ".2f",
    "÷ dense": ".3f",
    "at equal time": "+.3f",
    "flip rate": ".2%",
}


def learning_tables(infos: list[Info]) -> Iterator[Table]:
    """One table of all rows, by task, what lost least first; none where there are none."""
    places = _places(infos)
    if not places:
        return
    named, asked = columns(task="", dtype="", recipe=""), columns(faster="", as_good="")
    table = Table("Loss and time", "learning", (*named, *(Column(*one) for one in _NUMBERS.items()), *asked))
    for rows in places.values():
        dense = _dense(rows)
        for row in sorted(rows, key=lambda row: or_inf(row["last_bits"])):
            found = None if dense is None or row is dense else beside(row, dense)
            named_row = (row["workload"], row["dtype"], _recipe(row) + mark(row))
            table.rows.append((*named_row, row["steps"], len(row["step_ms"]), row["last_bits"], *_cells(row, found)))
    every = [row for rows in places.values() for row in rows]
    table.notes += [*_notes(every), *footnotes(every)]
    yield table


def _cells(row: Info, found: Beside | None) -> tuple[Cell, ...]:
    """From ``more than dense`` on."""
    took, flips = _mean(row["step_ms"]), row.get("mean_flip_rate")
    if found is None:
        return (None, None, took, None, None, flips, None, None)
    half = None if found.high is None else found.high - found.lost
    return (found.lost, half, took, found.step, found.at_equal_time, flips, found.faster, found.as_good)


def _notes(rows: list[Info]) -> Iterator[str]:
    yield (
        "bits: a prediction of what is held out takes, the mean over seeds; ±: half of the 95 % interval of the "
        "difference over seeds; at equal time: the difference when the quicker of the two is done, whatever rate the "
        "schedule of the other has then; flip rate: of the last new masks before each look, the mean"
    )
    eager = {f"{row['workload']} {_recipe(row)} {row['eager_step_ms']:.2f}": None for row in rows if _captured(row)}
    how = "as CUDA graphs, by the device's clock" if eager else "eager as it is"
    yield f"faster: a step of its takes less time than the dense one's, {how}, the whole schedule through"
    if eager:
        yield f"ms of an eager step, by a short schedule of its own: {', '.join(eager)}"
    told = dict.fromkeys((row["workload"], row["bits_margin"], row["unit"], row["data"]) for row in rows)
    for task, margin, unit, data in told:
        yield f"{task}: of {data}; as good (H11): not more than {margin:g} bits per {unit} are lost"


def learning_lines(run: Run) -> Iterator[str]:
    """Of each task one: whether sparse training pays there, and what the two recipes are that come nearest. Of several
    tasks also whether they rank recipes alike."""
    orders: list[tuple[str, list[str]]] = []
    for (task, steps, B, dtype, *_), rows in _places(run.infos).items():
        dense = _dense(rows)
        tried = {_recipe(row): beside(row, dense) for row in rows if dense and row is not dense and sound(row)}
        if not tried or dense is None:
            continue
        unit = f"bits per {dense['unit']}"
        where = f"{task}, {several(steps, 'step')} of {B} {dense['unit']}s, {dtype}"
        orders.append((task, sorted(tried, key=lambda name: or_inf(tried[name].lost))))
        yield f"Learning {where}: {_says(tried, unit, _compiled(dense), _captured(dense))}"
    if len({task for task, _ in orders}) > 1 and max(len(order) for _, order in orders) > 1:
        said = "; ".join(f"{task}: {', '.join(order)}" for task, order in orders)
        same = len({tuple(order) for _, order in orders}) == 1
        yield f"What loses least, first ({'the same' if same else 'not the same'} order in all tasks): {said}"


def _captured(row: Info) -> bool:
    """Whether steps are CUDA graphs, those of the compiled model too; beside them eager ones were timed."""
    return bool(row.get("timing") == "cuda_graph" and row.get("eager_step_ms"))


def _compiled(dense: Info) -> float | None:
    """A dense step, compiled, over the one that is not."""
    return ratio(dense["compiled_step_ms"], _mean(dense["step_ms"])) if dense.get("compiled_step_ms") else None


def _says(tried: dict[str, Beside], unit: str, compiled: float | None, captured: bool) -> str:
    both = [name for name, one in tried.items() if (one.faster, one.as_good) == ("yes", "yes")]
    ahead = [name for name in tried if tried[name].faster == "yes" and tried[name].at_equal_time < 0]
    quickest = min(tried, key=lambda name: tried[name].step)
    nearest = min(tried, key=lambda name: or_inf(tried[name].lost))
    named = [_numbers(name, tried[name], unit) for name in dict.fromkeys((*both, quickest, nearest))]
    margin = f"{tried[quickest].margin:g} {unit}"
    if both:
        says = f"{PAYS}: {' and '.join(both)} makes faster steps and loses at most {margin}"
    elif any(one.faster == UNKNOWN for one in tried.values()):
        says = "whether sparse training pays, one seed does not say"
    elif not any(one.faster in ("yes", "undecided") for one in tried.values()):
        says = "sparse training does not pay: no recipe's step is faster than the dense one"
    elif ahead:
        says = f"{PAYS} only by the clock: {' and '.join(ahead)} loses more than {margin}, and is ahead"
    elif any("undecided" in (one.faster, one.as_good) for one in tried.values()):
        says = f"undecided whether a recipe makes faster steps and loses at most {margin}"
    else:
        says = f"sparse training does not pay: no recipe makes faster steps and loses at most {margin}"
    if compiled is None:
        return ". ".join([says, *named])
    if (paying := both or ahead) and says.startswith(PAYS) and all(tried[name].step >= compiled for name in paying):
        beaten = "dense training as it is" if captured else "eager dense training"
        says = f"sparse training does not pay: {' and '.join(paying)} beats {beaten}, and not compiled"
    whose = "its time as it is, both as CUDA graphs" if captured else "the eager one's time"
    return ". ".join([says, *named, f"Compiled, a dense step takes {compiled:.3f} of {whose}"])


def _numbers(name: str, one: Beside, unit: str) -> str:
    interval = "" if one.ratio is None else f" ({one.ratio.low:.3f} – {one.ratio.high:.3f})"
    over = "" if one.low is None else f" ({one.low:+.3f} – {one.high:+.3f})"
    lost = f"{one.lost:+.3f} {unit}{over}, at equal time {one.at_equal_time:+.3f}"
    return f"{name}: step ÷ dense {one.step:.3f}{interval}, {lost}"


def _dense(rows: Iterable[Info]) -> Info | None:
    return next((row for row in rows if _recipe(row) == DENSE and sound(row)), None)


def _recipe(row: Info) -> str:
    return str(row["picks"].get("recipe", row["label"]))


def _places(infos: Iterable[Info]) -> dict[tuple[Any, ...], list[Info]]:
    found: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in infos:
        if section_of(info) == "learning":
            found[tuple(info.get(name) for name in PLACE)].append(info)
    return found
