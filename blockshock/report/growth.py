"""How the time of a row grows with the sizes: exponents of N and of B, with the intervals that they are known to.

The logarithm of a median is fitted by least squares as a·log √(N·K) + b·log B + c over the row's points. Twice the N
costs a product four times as much while arithmetic or memory bounds it (a = 2), and nothing while its launch does
(a = 0); in between the power law is none. Points of one size miss it together, so they count as one: the interval of a
is the jackknife's over sizes, each left out in turn, that of b over the numbers of tokens (Efron and Stein, Annals of
Statistics 9, 1981), with Student's factor for so many.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from blockshock.report.tables import Cell, Column, Info, Table, columns
from blockshock.saved import SECTIONS
from blockshock.saved.pairs import quantile

LEAST = 3
"""Different sizes, or numbers of tokens, that an exponent takes."""
SIZES = {"N": lambda info: math.sqrt(info["N"] * info["K"]), "B": lambda info: info["B"]}


def growth(section: str, rows: list[Info]) -> Iterator[Table]:
    """A table of the rows that were timed at enough points; none without such a row."""
    fitted: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for row in rows:
        if row.get("p50_ms") and not row.get("wrong"):
            fitted[row["workload"], row["dtype"], row.get("optimizer"), row["label"]].append(row)
    lines = [(key, _exponents(points), points) for key, points in fitted.items()]
    lines = [line for line in lines if line[1]]
    if not lines:
        return
    trained = any(key[2] for key, *_ in lines)
    names = columns(workload="", dtype="", **({"optimizer": ""} if trained else {}), method="", points="d")
    exponents = tuple(Column(name, ".2f") for size in SIZES for name in (f"exponent of {size}", f"± {size}"))
    table = Table(f"How time grows: {SECTIONS[section]}", section, (*names, *exponents))
    for (workload, dtype, optimizer, label), found, points in lines:
        cells: list[Cell] = [number for size in SIZES for number in found.get(size, (None, None))]
        table.rows.append((workload, dtype, *([optimizer] if trained else []), label, len(points), *cells))
    table.notes.append(
        f"of √(N·K) and of B, fitted to the medians where a row has {LEAST} of them; ±: half of the 95 % interval, by "
        "leaving out each size in turn: wide where time is no power of the sizes"
    )
    yield table


def _exponents(points: list[Info]) -> dict[str, tuple[float, float]]:
    """Of each size that varies enough its exponent and the half width of its interval; none where sizes that vary
    together leave it open."""
    varied = [size for size, of in SIZES.items() if len({of(point) for point in points}) >= LEAST]
    whole = _fitted(points, varied)
    return {} if whole is None else {size: (whole[size], _half_width(points, varied, size)) for size in varied}


def _half_width(points: list[Info], varied: list[str], size: str) -> float:
    """Of the interval around the exponent of a size; infinite where it hangs on a single one."""
    levels = {SIZES[size](point) for point in points}
    others = [_fitted([point for point in points if SIZES[size](point) != level], varied) for level in levels]
    found = [other[size] for other in others if other is not None]
    if len(found) < len(levels):
        return math.inf
    return quantile(len(levels) - 1) * math.sqrt((len(levels) - 1) * statistics.pvariance(found))


def _fitted(points: list[Info], varied: list[str]) -> dict[str, float] | None:
    """Exponents of the sizes; None where they are not determined."""
    logs = np.array([[1.0, *(math.log(SIZES[size](point)) for size in varied)] for point in points])
    if not varied or np.linalg.matrix_rank(logs) < logs.shape[1]:
        return None
    solution, *_ = np.linalg.lstsq(logs, np.log([point["p50_ms"] for point in points]), rcond=None)
    return dict(zip(varied, map(float, solution[1:]), strict=True))
