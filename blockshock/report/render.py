"""Draws the plots of a run, in several processes if there are many: each as SVG and as PNG."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.frame import View, frame_of, views
from blockshock.report.plots import Plot, kinds
from blockshock.report.plots.runs import runs_figure
from blockshock.report.plots.style import TITLE_HEIGHT, TOP, Styles, use_settings
from blockshock.report.tables import slug
from blockshock.report.workers import start_server
from blockshock.saved import SECTIONS, Run

DPI = 100
FEW = 16
"""Plots that are drawn before another process has imported matplotlib."""
WORKERS = 4
Job = tuple[str, Plot, View]


@dataclass(frozen=True)
class Picture:
    """A plot, drawn.

    Attributes:
        name: of its files, without the suffix.
        section, title, caption: where it belongs and what is to be read off it.
        svg, png: the files.
    """

    name: str
    section: str
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Missing:
    """A plot that a run has no results for, and what would measure them."""

    section: str
    title: str
    command: str


def draw(run: Run, prefix: str, drawn: Callable[[int, int], None]) -> tuple[list[Picture], list[Missing]]:
    """All plots of a run that its results allow, and what the others lack.

    Args:
        prefix: of the names, to tell runs apart.
        drawn: is told after each plot how many are done, of how many.
    """
    frame = frame_of(run)
    found = views(frame)
    labels = [named for view in found for named in zip(view.rows["label"], view.rows["role"], strict=True)]
    styles = Styles.of(labels, run.machine.get("ceilings") or {})
    jobs = [(prefix, plot, view) for section, plot in kinds() for view in found if view.section == section]
    pictures = []
    for number, picture in enumerate(_all(jobs, styles)):
        drawn(number + 1, len(jobs))
        if picture is not None:
            pictures.append(picture)
    promises = {"", *(info["promise"] for info in run.infos)}
    have = {(picture.section, picture.title.partition(" · ")[0]) for picture in pictures}
    missing = [
        Missing(section, plot.title, plot.command(section))
        for section, plot in kinds()
        if (section, plot.title) not in have and plot.promise in promises
    ]
    return pictures, missing


def draw_across(runs: list[Run]) -> Picture | None:
    """The ratios of two runs or more; None if they timed nothing in common."""
    use_settings()
    figure = runs_figure(runs)
    title = f"Time over that of {runs[0].name}"
    caption = "A dot a benchmark, a row a method: left of 1 it became faster."
    return None if figure is None else _saved(figure, "runs-compared", "across", title, caption)


def _all(jobs: list[Job], styles: Styles) -> Iterator[Picture | None]:
    if len(jobs) <= FEW:
        _prepare(styles)
        yield from map(_draw, jobs)
        return
    workers = min(WORKERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, start_server(), _start, (styles,)) as pool:
        yield from pool.map(_draw, jobs)


_STYLES: list[Styles] = []


def _prepare(styles: Styles) -> None:
    use_settings()
    _STYLES[:] = [styles]


def _start(styles: Styles) -> None:
    """Prepare a worker, which lives for seconds: collecting the cycles of its figures would take a tenth of them."""
    _prepare(styles)
    gc.disable()


def _draw(job: Job) -> Picture | None:
    prefix, plot, view = job
    rows = view.rows if plot.judged else _measured(view.rows)
    if rows.empty or (figure := plot.draw(rows, _STYLES[0])) is None:
        return None
    name = slug(f"{prefix} {view.section} {view.title} {plot.name}")
    return _saved(figure, name, view.section, f"{plot.title} · {view.title}", plot.caption)


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Without verdicts, and without the columns that only they have."""
    if "verdict" in rows:
        rows = rows[rows["verdict"].isna()]
    return rows.dropna(axis="columns", how="all")


def _saved(figure: Figure, name: str, section: str, title: str, caption: str) -> Picture:
    tall = figure.get_figheight()
    part = SECTIONS.get(section, "")
    heading = f"{title} · {part}" if part else title
    text = figure.text(0.012, 1 - (TOP - TITLE_HEIGHT) / 2.2 / tall, heading, fontsize=10, weight="bold", va="center")
    text.set_gid("title")
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    # Without the date and the version of matplotlib two reports on one run are the same.
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, section, title, caption, svg.getvalue(), png.getvalue())
