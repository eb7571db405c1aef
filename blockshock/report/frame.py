"""A run as a table for plotting, and the views of it that one plot each is drawn of."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from blockshock.report.flat import flat
from blockshock.report.results import Run
from blockshock.report.sections import COMMANDS, section_of
from blockshock.report.tables import point

RESAMPLES = 200
"""Fewer than a verdict's: these intervals are drawn, not judged by."""


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
        row = {"optimizer": None} | flat(info) | {"section": section_of(info)}
        row["comparable"] = "verdict" in info or len(points[record["group"]]) == 1
        row["medians"] = _medians(record, number) if "p50_ms" in info else None
        if error := checked.get((info["label"], *point(info))):
            row["checked_mean_error"] = error
        rows.append(row)
    return pd.DataFrame(rows)


def _medians(record: dict[str, Any], seed: int) -> np.ndarray:
    """Medians of resampled rounds in ms. Not in pairs, as in blockshock/pairs.py: these rounds did not alternate."""
    samples = np.asarray(record["samples"], dtype=float) * 1e3
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
        rows = square[square["section"] == section]
        if section == "forward":
            # Verdicts on forward passes hold ratios of these very points, with closer intervals.
            rows = square[(square["section"] == section) | ((square["section"] == "verdicts") & _forward(square))]
        found += [View(section, title, part) for title, part in _parts(section, rows)]
    return found


def _forward(rows: pd.DataFrame) -> Any:
    return rows["optimizer"].isna()


def _parts(section: str, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    by = ["workload", "dtype", "optimizer"]
    if section == "accuracy":
        by.append("phase")
    if section == "drift":
        by += ["N", "B"]
    parts = []
    for key, part in rows.groupby(by, sort=False, dropna=False):
        names = dict(zip(by, key, strict=True))
        told = [names["workload"], names["dtype"], None if pd.isna(names["optimizer"]) else names["optimizer"]]
        told.append("grad_X" if names.get("phase") == 2 else None)
        told += [f"{name}={names[name]}" for name in ("N", "B") if name in names]
        parts.append((" ".join(filter(None, told)), part))
    return parts
