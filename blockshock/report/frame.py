"""A run as a table for plotting, and the views of it that one plot each is drawn of."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from blockshock.report.comparison import by_loss
from blockshock.report.flat import flat
from blockshock.report.tables import Info, point
from blockshock.saved import COMMANDS, Run, is_alone, is_dense, section_of, sound

RESAMPLES = 200
"""Few: these intervals are drawn, not judged by."""


@dataclass(frozen=True)
class View:
    """Rows that go into one figure: of one section, workload, dtype and optimizer.

    Attributes:
        section: of ``sections.SECTIONS``.
        title: what sets these rows apart from those of the section's other views.
        rows: square layers whose points can be compared line by line.
    """

    section: str
    title: str
    rows: pd.DataFrame


def frame_of(run: Run) -> pd.DataFrame:
    """A row a result, its nested numbers in columns with dots, and

    - ``section``, and ``comparable``: whether it is of a group that can be compared line by line;
    - ``judges``: of a verdict, the section whose times its ratio is one of; none of a ratio of ratios;
    - ``label``: marked where the output is wrong, and ``sound``: whether it may be the fastest;
    - ``dense``: whether it is a dense alternative, ``alone``: whether it is set beside those of one device only;
    - ``best_of``: of a verdict, whether its rival was the best of several;
    - ``loss``: of errors of gradients, a row each;
    - ``medians``: of resampled rounds;
    - ``checked_mean_error``: of the same method and point, where the run checked it.
    """
    points: dict[str, set[Any]] = defaultdict(set)
    for record in run.records:
        points[record["group"]].add(point(record["extra_info"]))
    checked = {
        (info["label"], *point(info)): info["mean_error"]
        for info in (record["extra_info"] for record in run.records)
        if info["phase"] == 0 and isinstance(info.get("mean_error"), float)
    }
    rows = []
    for number, record in enumerate(run.records):
        info = record["extra_info"]
        row: Info = {"judges": judges(info), "section": section_of(info)}
        row["comparable"] = "verdict" in info or len(points[record["group"]]) == 1
        row["medians"] = _medians(record, number) if "p50_ms" in info else None
        row |= {"sound": sound(info), "dense": is_dense(info), "alone": is_alone(info)}
        row |= {"best_of": len(info.get("rivals") or ()) > 1}
        if error := checked.get((info["label"], *point(info))):
            row["checked_mean_error"] = error
        if info.get("wrong"):
            row["label"] = f"{info['label']} ‡"
        rows += [{"optimizer": None, "loss": None} | flat(one) | row for one in by_loss(info)]
    return pd.DataFrame(rows)


def judges(info: Info) -> str | None:
    """The section whose times the ratio of a verdict is one of: ratios of ratios are of none. Runs without blocks
    judged forward passes, and of what is trained ratios of ratios."""
    if "verdict" not in info:
        return None
    told = list(info.get("blocks") or (("forward", "training") if info.get("optimizer") else ("forward",)))
    return told[0] if len(told) == 1 else None


def _medians(record: dict[str, Any], seed: int) -> np.ndarray:
    """Medians of resampled builds, or of rounds where there is one build, in ms. Not in pairs, as in
    blockshock/saved/pairs.py: these did not alternate."""
    builds = record["extra_info"].get("builds_p50_ms") or ()
    samples = np.asarray(builds if len(builds) > 1 else np.multiply(record["samples"], 1e3), dtype=float)
    if len(samples) < 2:
        return np.full(RESAMPLES, record["extra_info"]["p50_ms"])
    places = np.random.default_rng(seed).integers(0, len(samples), (RESAMPLES, len(samples)))
    return np.median(samples[places], axis=1)


def views(frame: pd.DataFrame) -> list[View]:
    """All views of a run, in the order of the sections. Layers that are not square are left to the tables."""
    if frame.empty:
        return []
    square = frame[frame["comparable"] & (frame["N"] == frame["K"])]
    found = []
    for section in COMMANDS:
        # Verdicts hold ratios of these very points, with intervals that can be relied on.
        rows = square[(square["section"] == section) | (square["judges"] == section)]
        found += [View(section, title, part) for title, part in _parts(section, rows)]
    return found


def _parts(section: str, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    by = ["workload", "dtype", "optimizer"]
    if section == "accuracy":
        by += ["phase", "loss"]
    if section == "drift":
        by += ["N", "B"]
    parts = []
    for key, part in rows.groupby(by, sort=False, dropna=False):
        names = dict(zip(by, key, strict=True))
        told = [names["workload"], names["dtype"], None if pd.isna(names["optimizer"]) else names["optimizer"]]
        if names.get("phase") == 2:
            told.append("grad_X" if pd.isna(names["loss"]) else f"grad_X of {names['loss']}")
        told += [f"{name}={names[name]}" for name in ("N", "B") if name in names]
        parts.append((" ".join(filter(None, told)), part))
    return parts
