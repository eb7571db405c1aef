"""Every plot of a report: the question that it answers, the sections that it belongs to, and who draws it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blockshock.report.plots.curves import curves
from blockshock.report.plots.drift import drift
from blockshock.report.plots.heat import heat
from blockshock.report.plots.lines import Mark, lines
from blockshock.report.plots.panels import Point
from blockshock.report.plots.roofline import roofline
from blockshock.report.plots.stages import stages
from blockshock.report.plots.style import Styles, style_sheet
from blockshock.report.plots.svg import Figure, as_file
from blockshock.report.points import Against, every_row
from blockshock.saved import PASSES, PHASES, SECTIONS, Run, section_of

__all__ = ["HEAT", "Drawing", "Figure", "Plot", "Styles", "View", "as_file", "drawings", "heat", "style_sheet"]

TIMED = tuple(PHASES.values())
MIB = 2**20
EVEN = Mark(1.0, "best dense")
Info = dict[str, Any]


@dataclass(frozen=True)
class View:
    """Rows that go into one figure.

    Attributes:
        section: of ``sections.SECTIONS``.
        title: what sets these rows apart from those of the section's other views.
        about: the claim that they are about, in words.
        infos: the rows, one a label and point; of a claim its verdicts.
        against: the same rows beside the best dense alternative.
        ceilings: of the machine.
    """

    section: str
    title: str
    about: str
    infos: list[Info]
    against: list[Against]
    ceilings: Info

    @property
    def ranks(self) -> list[tuple[str, float]]:
        """By what to choose of too many rows."""
        return [(row.label, row.ratio) for row in self.against]


@dataclass(frozen=True)
class Plot:
    """One kind of plot.

    Attributes:
        name: in file names.
        title, caption: the question, and how the answer is read off it.
        draw: None where the rows hold nothing to be compared.
        sections: where it belongs.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[View, Styles], Figure | None]
    sections: tuple[str, ...] = TIMED


@dataclass(frozen=True)
class Drawing:
    """A plot of a view, drawn."""

    plot: Plot
    view: View
    figure: Figure


def _ratio(view: View, styles: Styles) -> Figure | None:
    points = [
        Point(row.label, row.N, row.K, row.B, row.ratio, row.low, row.high, f"{row.ratio:.3f} of {row.rival}'s")
        for row in view.against
    ]
    return lines(points, styles, "time ÷ best dense", [EVEN], shared=True, ranks=view.ranks)


def _of(value: Callable[[Info], Any], what: str, marks: tuple[Mark, ...] = (), highest: bool = False) -> Any:
    """Draws lines of a value."""

    def draw(view: View, styles: Styles) -> Figure | None:
        found = ((info, value(info)) for info in view.infos)
        points = [
            Point(info["label"], info["N"], info["K"], info["B"], number, info.get("ratio_low"), info.get("ratio_high"))
            for info, number in found
            if isinstance(number, (int, float))
        ]
        ranks = [(point.label, -point.value) for point in points] if highest else view.ranks
        return lines(points, styles, what, marks, ranks=ranks)

    return draw


def _peak(info: Info) -> float | None:
    size = info.get("steady_peak_bytes")
    return size / MIB if isinstance(size, (int, float)) else None


HEAT = Plot(
    "heat",
    "Where does it pay?",
    "Time ÷ the best dense alternative's, of each method's fastest row: below 1 it is faster, and the thick line is "
    "where the two break even. Bold: faster or slower for sure, by pairs whose 95 % interval is clear of the margin; "
    "~: a tie, or undecided; plain: medians alone.",
    lambda view, styles: heat(view.against),
)
PLOTS = (
    Plot(
        "ratio",
        "How much faster or slower than the best dense alternative?",
        "Below 1 it is faster than every dense one there. Upright strokes are 95 % intervals, where it was paired.",
        _ratio,
    ),
    Plot("time", "How long does it take?", "Median of all rounds.", _of(lambda info: info["p50_ms"], "time, ms")),
    Plot(
        "stages",
        "Where does the time go?",
        "Each bar is the whole of a row's time. Layout is what arranging x and the outputs takes.",
        lambda view, styles: stages(view.infos, styles, view.ranks),
    ),
    Plot(
        "roofline",
        "What is the limit, memory or the multipliers?",
        "Dashed: the 2:4 roof, which counts the kept values alone, as its rows do; vendors count the dropped ones too, "
        "and say twice that.",
        lambda view, styles: roofline(view.infos, styles, view.ranks, view.ceilings),
    ),
    Plot(
        "memory",
        "How much memory does it take?",
        "The peak of the fullest rank while it runs.",
        _of(_peak, "peak memory, MiB"),
    ),
    Plot(
        "claim",
        "How far does the claim hold?",
        "Time ÷ the rival's, or for claims about two of these their ratio; upright strokes are 95 % intervals. Below 1 "
        "the claim holds.",
        _of(lambda info: info["ratio"], "time ÷ rival's, or ratio of two", (Mark(1.0, "even"),)),
        ("verdicts",),
    ),
    Plot(
        "error",
        "Is it right?",
        "Error against float64 ÷ the dense product's; what lies above the upper line fails. Those with the largest "
        "errors are drawn.",
        _of(
            lambda info: info.get("error_ratio"),
            "error ÷ dense product's",
            (Mark(1.0, "dense"), Mark(PASSES, "passes below")),
            highest=True,
        ),
        ("accuracy",),
    ),
    Plot(
        "drift",
        "Does the error grow when a layer is fed its own output?",
        "Of all steps so far, over the dense product's; what lies above the upper line fails.",
        lambda view, styles: drift(view.infos, styles),
        ("drift",),
    ),
    Plot(
        "curves",
        "What do recipes learn, by the step and by the clock?",
        "Lower is better; each point is the mean over seeds of what is held out. Rates fall to the end of each run.",
        lambda view, styles: curves(view.infos, styles),
        ("learning",),
    ),
)


def drawings(run: Run) -> Iterator[Drawing]:
    """All plots that the run's results allow, in the order of the sections; the labels of what is wrong are marked."""
    infos = [info | {"label": f"{info['label']} ‡"} if info.get("wrong") else info for info in run.infos]
    styles, found = Styles.of(infos), list(views(run, infos))
    for section in SECTIONS:
        for plot in PLOTS:
            for view in found:
                if view.section == section and section in plot.sections and (figure := plot.draw(view, styles)):
                    yield Drawing(plot, view, figure)


def views(run: Run, infos: list[Info]) -> Iterator[View]:
    """What can be compared line by line: of one section, workload, dtype, optimizer, phase of checks, and claim.

    Args:
        infos: the run's, as they are to be drawn.
    """
    rows = list(every_row(run.infos).values())
    grouped: dict[tuple[str, ...], list[Info]] = defaultdict(list)
    beside: dict[tuple[str, ...], list[Against]] = defaultdict(list)
    for info in infos:
        if section := section_of(info):
            grouped[section, *_told(section, info)].append(info)
    for row in rows:
        key = (
            row.section,
            *_told(row.section, {"workload": row.workload, "dtype": row.dtype, "optimizer": row.optimizer}),
        )
        beside[key].append(row)
    numbered = {(*row.place[1:], row.label, row.rival, row.ratio) for row in rows if row.verdict}
    ceilings = run.machine.get("ceilings")
    known = ceilings if isinstance(ceilings, dict) else {}
    for key in dict.fromkeys((*grouped, *beside)):
        rest = [info for info in grouped[key] if "verdict" not in info or _number(info) not in numbered]
        about = f"{key[1]}: {rest[0]['statement']}" if rest and key[0] == "verdicts" else ""
        yield View(key[0], " ".join(filter(None, key[1:])), about, rest, beside[key], known)


def _told(section: str, info: Info) -> tuple[str, ...]:
    """What sets rows apart that must not be in one figure."""
    about = ""
    if section == "verdicts":
        about = info["hypothesis"]
    if section == "accuracy":
        about = {0: "outputs", 2: "gradients of x"}.get(info["phase"], "training")
    place = " ".join(filter(None, (info["workload"], info.get("where"))))
    return (about, place, info["dtype"], info.get("optimizer") or "")


def _number(info: Info) -> tuple[Any, ...]:
    """Of a verdict whose ratio is a point of the plots above."""
    place = (info["workload"], info["N"], info["K"], info["B"], info["dtype"], info.get("optimizer"))
    return (*place, info["label"], info["rival"], info["ratio"])
