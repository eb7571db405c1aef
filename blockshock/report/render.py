"""Draws the plots of a run: each as panels for the page, and as a file that stands for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blockshock.report.fastest import against_best
from blockshock.report.plots import HEAT, Plot, as_file, drawings, heat, style_sheet
from blockshock.report.plots.svg import Figure, Panel
from blockshock.report.ran import hardware
from blockshock.report.tables import slug
from blockshock.saved import SECTIONS, Run

MAP = "time ÷ best dense; bold: sure; ~: a tie, or undecided"
"""What the file of the map says of its numbers; in a page its caption does."""


@dataclass(frozen=True)
class Picture:
    """A plot, drawn.

    Attributes:
        name: of its file, without the suffix.
        section, title, caption: where it belongs, the question, and how the answer is read off it.
        panels: for the page.
        on: the hardware; in a page its chapter says it.
    """

    name: str
    section: str
    title: str
    caption: str
    panels: list[Panel]
    on: str

    def svg(self) -> str:
        """As a file."""
        if not self.section:
            return as_file(self.panels, self.title, f"{self.on} · {MAP}", style_sheet())
        return as_file(self.panels, f"{self.title} · {SECTIONS[self.section]}", self.on, style_sheet())


def draw(run: Run, prefix: str) -> Iterator[Picture]:
    """The map, if the run has one, and all plots that its results allow.

    Args:
        prefix: of the names, to tell runs apart.
    """
    if figure := heat(against_best(run)):
        yield _picture(run, HEAT, "", "", "", figure, prefix)
    for drawn in drawings(run):
        view = drawn.view
        yield _picture(run, drawn.plot, view.section, view.title, view.about, drawn.figure, prefix)


def _picture(run: Run, plot: Plot, section: str, view: str, about: str, figure: Figure, prefix: str) -> Picture:
    more = f" Not drawn, but in the tables: {', '.join(figure.left_out)}." if figure.left_out else ""
    title = " · ".join(filter(None, (plot.title, view)))
    caption = "".join((f"{about}. " if about else "", plot.caption, more))
    name = slug(f"{prefix} {section} {view} {plot.name}")
    return Picture(name, section, title, caption, figure.panels, hardware(run))
