"""How the time of a row grows with the sizes: exponents of N and of B, with the intervals that they are known to.

The logarithm of a median is fitted by least squares as a·log √(N·K) + b·log B + c over the row's points. Twice the N
costs a product four times as much while arithmetic or memory bounds it (a = 2), and nothing while its launch does
(a = 0); in between the power law is none, and the interval, Student's over what the fit leaves, is wide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from blockshock.report.tables import Cell, Column, Info, Table, columns
from blockshock.saved import SECTIONS
from blockshock.saved.pairs import quantile

LEAST = 3
"""Different sizes, or numbers of tokens, that an exponent takes; and points beside what is fitted."""
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
        f"of √(N·K) and of B, fitted to the medians where a row has {LEAST} of them; ±: half of the 95 % interval, "
        "wide where time is no power of the sizes"
    )
    yield table


def _exponents(points: list[Info]) -> dict[str, tuple[float, float]]:
    """Of each size that varies enough its exponent and the half width of its interval; none where too few points, or
    sizes that vary together, leave it open."""
    varied = [size for size, of in SIZES.items() if len({of(point) for point in points}) >= LEAST]
    ones = [1.0] * len(points)
    logs = np.array([ones, *([math.log(SIZES[size](point)) for point in points] for size in varied)]).T
    freedom = len(points) - logs.shape[1]
    if not varied or freedom < LEAST or np.linalg.matrix_rank(logs) < logs.shape[1]:
        return {}
    times = np.log([point["p50_ms"] for point in points])
    solution, *_ = np.linalg.lstsq(logs, times, rcond=None)
    left = times - logs @ solution
    spread = np.sqrt(left @ left / freedom * np.diag(np.linalg.inv(logs.T @ logs)))
    found = zip(varied, solution[1:], quantile(freedom) * spread[1:], strict=True)
    return {size: (float(exponent), float(half)) for size, exponent, half in found}
