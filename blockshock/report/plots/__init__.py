"""Every plot of a report: what it is called, what is to be read off it, which results it needs, and who draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots import accuracy, drift, limits, memory, ratios, stages, times
from blockshock.report.plots.style import Styles
from blockshock.saved import COMMANDS, PHASES

Draw = Callable[[pd.DataFrame, Styles], Figure | None]
TIMED = tuple(PHASES.values())
SPANS = {"group": "all ranks", "one": "one device"}


@dataclass(frozen=True)
class Plot:
    """One kind of plot.

    Attributes:
        name: in file names.
        title, caption: what it shows, and what is to be read off it, in a sentence.
        draw: takes the rows of one view and the styles; None if they hold nothing to be drawn.
        sections: where it belongs.
        option: what a run must be made with beside the section's command, if anything.
        judged: whether it takes the rows of verdicts too.
        promise: of methods that give this promise alone.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    sections: tuple[str, ...] = TIMED
    option: str = ""
    judged: bool = False
    promise: str = ""

    def command(self, section: str) -> str:
        """What measures it."""
        return " ".join(filter(None, (COMMANDS[section], self.option)))


PLOTS = (
    Plot("time", "Time", "Median of all rounds, the band reaches up to p95. Lower is better.", times.time),
    Plot("throughput", "Throughput", "Rows of X a second. Higher is better.", times.throughput),
    Plot(
        "stages",
        "Time by stage",
        "Where the time goes: communication is reduce, what the idea adds is layout. Two N and three B are drawn, "
        "the table has all.",
        stages.stages,
    ),
    Plot(
        "without-layout",
        "Time minus layout",
        "An optimistic bound: the time if arranging X and the outputs cost nothing.",
        times.without_layout,
        ("forward",),
    ),
    Plot(
        "ratio-best-dense",
        "Time over the best dense alternative",
        "Below 1 the method is faster than every dense one that was timed there; the speed-up table names the best at "
        "each point. Bands are 95 % intervals: of pairs where the run holds verdicts, else of each method's own "
        "builds or rounds.",
        ratios.over,
        judged=True,
    ),
    *(
        Plot(
            f"ratio-dense-{span}",
            f"Time over the dense layer on {where}",
            "Below 1 the method is faster than the one that the axis names. Bands are 95 % intervals, as above.",
            partial(ratios.over, span=span),
            judged=True,
        )
        for span, where in SPANS.items()
    ),
    Plot(
        "heat-best-dense",
        "Where it beats the best dense alternative",
        "Time over that of the fastest dense one at each size, which the speed-up table names; the line is where they "
        "break even. A method of several rows has a map of its fastest at each point.",
        ratios.heat,
        judged=True,
    ),
    *(
        Plot(
            f"heat-dense-{span}",
            f"Where it beats the dense layer on {where}",
            "Time over that layer's at each size; the line is where they break even.",
            partial(ratios.heat, span=span),
            judged=True,
        )
        for span, where in SPANS.items()
    ),
    Plot(
        "of-limit",
        "Share of the limit",
        "The time that no implementation can beat on this machine, over the time taken. Higher is better.",
        limits.of_limit,
    ),
    Plot(
        "roofline",
        "Roofline",
        "Every point of this section against what the machine can do: under a slope memory is the limit, under a flat "
        "roof the multipliers are.",
        limits.roofline,
    ),
    Plot(
        "peak-memory",
        "Peak memory",
        "Of the fullest rank, while it runs; dotted while the layer is built.",
        memory.peak,
    ),
    Plot(
        "weight-bytes",
        "Bytes of the weights",
        "Counted from storage, lines, and estimated by arithmetic, crosses; where a cross is off its line the estimate "
        "is wrong.",
        memory.weights,
    ),
    Plot("time-per-byte", "Time per weight byte", "How long a byte of stored weights keeps a rank.", memory.per_byte),
    Plot(
        "quality",
        "Quality-adjusted speed",
        "(1/t) / (1 + mean error): a method that is fast but wrong falls. Higher is better.",
        accuracy.quality,
        ("forward",),
        "tests/test_phase0_correctness.py",
    ),
    Plot("error-relative", "Relative error", "Frobenius norm against float64.", accuracy.relative, ("accuracy",)),
    Plot("error-max", "Largest error", "Of any element, against float64.", accuracy.largest, ("accuracy",)),
    Plot("error-mean", "Mean error", "Of all elements, against float64.", accuracy.mean, ("accuracy",)),
    Plot(
        "output-error",
        "What weights of their own lose",
        "Of the output, against the dense weight, on inputs that nothing was chosen by. Lower is better.",
        accuracy.lost,
        ("accuracy",),
        promise="own weights",
    ),
    Plot(
        "verdicts",
        "Ratios behind the verdicts",
        "Of claims whose rivals have no plot of their own above; below the dashed line the claim is right.",
        ratios.verdicts,
        ("verdicts",),
        judged=True,
    ),
    Plot(
        "drift",
        "Errors of a layer that is fed its own output",
        "After each step, against float64; the dashed line is the dense product's relative error.",
        drift.errors,
        ("drift",),
    ),
    Plot(
        "drift-ratio",
        "Drift beside the dense product's",
        "Error of all steps so far over the dense product's: 1 is no worse than dense, 2 still passes.",
        drift.ratio,
        ("drift",),
    ),
)


def kinds() -> Iterator[tuple[str, Plot]]:
    """Every plot with each section that it belongs to, in the order of the sections."""
    for section in COMMANDS:
        for plot in PLOTS:
            if section in plot.sections:
                yield section, plot
