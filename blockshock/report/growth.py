"""How the time of a row grows with the sizes and with the ranks: exponents, with the intervals that they are known to.

The logarithm of a median is fitted by least squares as a·log √(N·K) + b·log B + c over the row's points. Twice the N
costs a product four times as much while arithmetic or memory bounds it (a = 2), and nothing while its launch does
(a = 0); in between the power law is none. Points of one size miss it together, so they count as one: the interval of a
is the jackknife's over sizes, each left out in turn, that of b over the numbers of tokens (Efron and Stein, Annals of
Statistics 9, 1981), with Student's factor for so many.

A run has one number G of ranks, so that the exponent g of it takes several runs: of points that were timed on different
numbers, g·log G + c with a c for each point, for not all runs have the same ones. Its interval is the jackknife's over
the numbers of ranks; of two, which leave none to leave out, over layers.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from blockshock.report.plots.panels import layer
from blockshock.report.ran import hardware_kind
from blockshock.report.tables import Cell, Column, Info, Table, columns
from blockshock.saved import PHASES, SECTIONS, Run, section_of
from blockshock.saved.pairs import quantile

LEAST = 3
"""Different sizes, or numbers of tokens, that an exponent takes."""
SIZES: dict[str, Callable[[Info], float]] = {
    "N": lambda info: math.sqrt(info["N"] * info["K"]),
    "B": lambda info: info["B"],
    "G": lambda info: info["ranks"],
}
WITHIN_A_RUN = ("N", "B")
Group = Callable[[Info], Any]
"""What points have in common that share a constant, or are left out together."""
TITLE, ACROSS = "How time grows", "across"


def growth(section: str, rows: list[Info]) -> Iterator[Table]:
    """A table of the rows that were timed at enough points; none without such a row."""
    fitted: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for row in rows:
        if _counts(row):
            fitted[row["workload"], row["dtype"], row.get("optimizer"), row["label"]].append(row)
    lines = [(key, _exponents(points), points) for key, points in fitted.items()]
    lines = [line for line in lines if line[1]]
    if not lines:
        return
    trained = any(key[2] for key, *_ in lines)
    names = columns(workload="", dtype="", **({"optimizer": ""} if trained else {}), method="", points="d")
    exponents = tuple(column for size in WITHIN_A_RUN for column in _columns(size))
    table = Table(f"{TITLE}: {SECTIONS[section]}", section, (*names, *exponents))
    for (workload, dtype, optimizer, label), found, points in lines:
        cells: list[Cell] = [number for size in WITHIN_A_RUN for number in found.get(size, (None, None))]
        table.rows.append((workload, dtype, *([optimizer] if trained else []), label, len(points), *cells))
    table.notes.append(
        f"of √(N·K) and of B, fitted to the medians where a row has {LEAST} of them; ±: half of the 95 % interval, by "
        "leaving out each size in turn: wide where time is no power of the sizes"
    )
    yield table


def growth_in_ranks(runs: list[Run]) -> Iterator[Table]:
    """A table for each section in which rows that ranks share were timed on several numbers of them, at the same point,
    on hardware of one kind and in the same way; none without such rows."""
    timed: dict[str, dict[tuple[Any, ...], list[Info]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for row in filter(_counts, run.infos):
            if (section := section_of(row)) in PHASES.values() and row["span"] == "group":
                how = row.get("timing"), row.get("flush")
                key = (hardware_kind(run), row["workload"], row["dtype"], row.get("optimizer"), row["label"], how)
                timed[str(section)][key].append(row)
    for section in PHASES.values():
        lines = [(key, points) for key, rows in timed[section].items() if (points := _on_several(rows))]
        if lines:
            yield _in_ranks(section, lines)


def _in_ranks(section: str, lines: list[tuple[tuple[Any, ...], list[Info]]]) -> Table:
    trained = any(optimizer for (_, _, _, optimizer, *_), _ in lines)
    names = {"on": "", "workload": "", "dtype": "", **({"optimizer": ""} if trained else {})}
    shown = columns(**names, method="", ranks="", layers="", points="d")
    ends = (Column("at the smallest", ".2f"), Column("at the largest", ".2f"))
    table = Table(f"{TITLE} with ranks: {SECTIONS[section]}", ACROSS, (*shown, *_columns("G"), *ends))
    for (kind, workload, dtype, optimizer, label, _), points in lines:
        sizes = sorted({(SIZES["N"](point), *_layer(point)) for point in points})
        counts = sorted({point["ranks"] for point in points})
        layers = dict.fromkeys(layer(N, K) for _, N, K in (sizes[0], sizes[-1]))
        exponent, half = _exponent_of_ranks(points)
        named = (kind, workload, dtype, *([optimizer] if trained else []), label)
        ranks, count = ", ".join(map(str, counts)), len({_point(point) for point in points})
        at_ends = (_at(points, (N, K)) for _, N, K in (sizes[0], sizes[-1]))
        table.rows.append((*named, ranks, " to ".join(layers), count, exponent, half, *at_ends))
    table.notes += [
        "of the number of ranks G, fitted to the medians of points that were timed on several: −1 where twice the "
        "ranks take half the time, 0 where they gain nothing; beside it that of the smallest and of the largest layer",
        "±: half of the 95 % interval, by leaving out each number of ranks in turn, or of two each layer: wide where "
        "time is no power of G, or not the same one in all layers. Each number is a run of its own: of two, what "
        "differs from session to session is in the exponent and not in its interval",
    ]
    return table


def _counts(row: Info) -> bool:
    return bool(row.get("p50_ms")) and not row.get("wrong")


def _columns(size: str) -> tuple[Column, Column]:
    return Column(f"exponent of {size}", ".2f"), Column(f"± {size}", ".2f")


def _point(row: Info) -> tuple[int, int, int]:
    return row["N"], row["K"], row["B"]


def _layer(row: Info) -> tuple[int, int]:
    return row["N"], row["K"]


def _on_several(rows: list[Info]) -> list[Info]:
    """Of rows those whose point is another's on another number of ranks."""
    counts: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for row in rows:
        counts[_point(row)].add(row["ranks"])
    return [row for row in rows if len(counts[_point(row)]) > 1]


def _exponent_of_ranks(points: list[Info]) -> tuple[float, float]:
    """With the half width of its interval."""
    whole = _fitted(points, ["G"], _point)
    assert whole is not None
    counts = {point["ranks"] for point in points}
    return whole["G"], _half_width(points, ["G"], "G", SIZES["G"] if len(counts) > 2 else _layer, _point)


def _at(points: list[Info], end: tuple[int, int]) -> float | None:
    found = _fitted([point for point in points if _layer(point) == end], ["G"], _point)
    return None if found is None else found["G"]


def _exponents(points: list[Info]) -> dict[str, tuple[float, float]]:
    """Of each size that varies enough its exponent and the half width of its interval; none where sizes that vary
    together leave it open. One of fewer values has none, and a constant of its own for each of them: what it makes of
    the time is no doing of the other's."""
    varied = [size for size in WITHIN_A_RUN if len({SIZES[size](point) for point in points}) >= LEAST]
    others = [SIZES[size] for size in WITHIN_A_RUN if size not in varied]
    group = lambda point: tuple(size(point) for size in others)  # noqa: E731
    whole = _fitted(points, varied, group)
    if whole is None:
        return {}
    return {size: (whole[size], _half_width(points, varied, size, SIZES[size], group)) for size in varied}


def _half_width(points: list[Info], varied: list[str], size: str, over: Group, group: Group | None = None) -> float:
    """Of the interval around the exponent of a size, by leaving out each value of what ``over`` gives; infinite where
    it hangs on a single value."""
    levels = {over(point) for point in points}
    others = [_fitted([point for point in points if over(point) != level], varied, group) for level in levels]
    found = [other[size] for other in others if other is not None]
    if len(found) < max(len(levels), 2):
        return math.inf
    return quantile(len(levels) - 1) * math.sqrt((len(levels) - 1) * statistics.pvariance(found))


def _fitted(points: list[Info], varied: list[str], group: Group | None = None) -> dict[str, float] | None:
    """Exponents of the sizes, with a constant for each group of points; None where they are not determined."""
    if not varied or not points:
        return None
    logs = np.array([[math.log(SIZES[size](point)) for size in varied] for point in points])
    times = np.log([point["p50_ms"] for point in points])
    groups = [None if group is None else group(point) for point in points]
    for one in dict.fromkeys(groups):
        inside = [other == one for other in groups]
        logs[inside] -= logs[inside].mean(0)
        times[inside] -= times[inside].mean()
    if np.linalg.matrix_rank(logs, tol=FLAT) < len(varied):
        return None
    solution, *_ = np.linalg.lstsq(logs, times, rcond=None)
    return dict(zip(varied, map(float, solution), strict=True))


FLAT = 1e-6
"""Of logarithms around their mean, what is none but for rounding."""
