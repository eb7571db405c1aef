"""What a model's linear layers take together: their times, added up by how often the model has each of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from blockshock.report.alike import Speed, least_losing
from blockshock.report.points import Place, best_names, place_of
from blockshock.report.tables import Info, known, spread
from blockshock.saved import Run, is_alone, loss_of, section_of, sound

Names = dict[tuple[Place, bool], str]
"""Of the best dense alternatives."""
PASSES = {
    "forward": "forward",
    "backward": "forward and backward",
    "training": "training step",
    "ffn": "both passes of a feed-forward block",
}


class _Where(NamedTuple):
    """What is added up: the layers of a model in one pass, at one B."""

    section: str
    model: str
    of: int
    list: str | None  # of a file, by a digest of its points: two files may have one name
    B: int | None  # None of a file, whose points are added up whatever their B
    workload: str
    dtype: str
    optimizer: str | None


class _Sum(NamedTuple):
    """Of one row: over how many layers, its time and that of the best dense alternative beside it, in ms, how far its
    builds scatter, and the mean of what its layers lose; None where one of them does not say."""

    label: str
    layers: int
    ms: float
    dense_ms: float
    scatter_ms: float
    loss: float | None

    @property
    def ratio(self) -> float:
        return self.ms / self.dense_ms

    @property
    def speed(self) -> Speed:
        return Speed(self.ratio, self.loss, self.scatter_ms / self.ms)


def model_lines(run: Run) -> list[str]:
    """One for each method that is asked about, of each model and B: its fastest row over the best dense alternative.

    Of the layers that were asked for by ``--layers`` or ``--points``; none where there are none.
    """
    found: dict[_Where, dict[tuple[int, int, int], list[Info]]] = defaultdict(lambda: defaultdict(list))
    for info in run.infos:
        for use in info.get("layers") or ():
            if (section := section_of(info)) in PASSES:
                B = None if use["listed"] else info["B"]
                data = info["workload"], info["dtype"], info.get("optimizer")
                where = _Where(section or "", *_list_of(use), B, *data)
                point = found[where][info["N"], info["K"], info["B"]]
                if info not in point:  # as it is for each other layer of this shape
                    point.append(info)
    names = best_names(run.infos)
    return [line for where, points in found.items() for line in _lines(where, list(points.values()), names)]


def _list_of(use: Info) -> tuple[str, int, str | None]:
    """Of which model's layers it is one, or of which file's."""
    return use["model"], use["of"], use.get("list")


def _lines(where: _Where, points: list[list[Info]], names: Names) -> Iterator[str]:
    asked = {info["label"]: info["method"] for rows in points for info in rows if info["role"] == "subject"}
    sums = [(method, added) for label, method in asked.items() if (added := _add(where, label, points, names))]
    for method in dict.fromkeys(asked.values()):
        ours = [one for of, one in sums if of == method]
        if not ours:
            continue
        # Of those that were timed at the most of the layers the fastest.
        most = max(one.layers for one in ours)
        best = least_losing((one for one in ours if one.layers == most), lambda one: one.speed)
        count = f"all {where.of}" if best.layers == where.of else f"{best.layers} of {where.of}"
        tokens = "" if where.B is None else ", one token" if where.B == 1 else f", {where.B} tokens"
        data = ", ".join(filter(None, (where.workload, where.dtype, where.optimizer)))
        yield (
            f"{PASSES[where.section]}, {count} linear layers of {where.model}{tokens} ({data}): {best.label}, "
            f"time ÷ best dense {best.ratio:.2f} ({best.ms:.3g} ms ÷ {best.dense_ms:.3g} ms)"
        )


def _add(where: _Where, label: str, points: list[list[Info]], names: Names) -> _Sum | None:
    """None where no layer has a sound time of this row, with one of the best dense alternative beside it."""
    layers, ms, dense_ms, scatter_ms, lost = 0, 0.0, 0.0, 0.0, 0.0
    for rows in points:
        row = next((info for info in rows if info["label"] == label and sound(info)), None)
        best = row and names.get((place_of(where.section, row), is_alone(row)))
        dense = next((info for info in rows if info["label"] == best), None)
        if row is None or dense is None:
            continue
        count = sum(use["count"] for use in row["layers"] if _list_of(use) == where[1:4])
        layers, ms, dense_ms = layers + count, ms + count * row["p50_ms"], dense_ms + count * dense["p50_ms"]
        scatter_ms += count * row["p50_ms"] * (spread(row) or 0.0)
        loss = loss_of(row)
        lost += math.nan if loss is None else count * loss.value
    return _Sum(label, layers, ms, dense_ms, scatter_ms, known(lost / layers)) if layers else None
