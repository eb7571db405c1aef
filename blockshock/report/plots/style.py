"""How plots look: one colour a row in all of them, rivals in greys, and at most six lines in a panel.

What a row is called gives its colour, so that it is the same in every plot and, as a rule, in every report. Rows that
differ in their storage alone share it, and differ in their dashes. The style sheet has a palette for each theme; in
both each colour can be told from every other by readers of any colour vision (a test simulates it).
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

PAPER = {"light": "#fdfdfe", "dark": "#14171c"}
INK = {"light": "#1b1f27", "dark": "#e6e9ee"}
MUTED = {"light": "#565e6b", "dark": "#a2abb8"}
GRID = {"light": "#d9dde4", "dark": "#343b46"}
GREY = {"light": "#767c87", "dark": "#8c94a0"}
COLOURS = {
    "light": ("#2095e3", "#d55e00", "#005c3e", "#ab30a2", "#43175a", "#714000"),
    "dark": ("#5bb5e9", "#de9200", "#22865a", "#ffb9b0", "#a966ef", "#faef4e"),
}
CELLS = {
    "light": (
        *("#6fb1e8", "#9ccaf0", "#c3dff6", "#e1eefa", "#eef0f3"),
        *("#fbe6d3", "#f6cda6", "#efb077", "#e6924a"),
    ),
    "dark": (
        *("#1f5f99", "#1b4f80", "#194065", "#1a3149", "#2a2f37"),
        *("#46341f", "#60401c", "#7a4b17", "#8f5310"),
    ),
}
"""Of a map, from much faster to much slower."""
DASHES = 4
MOST_LINES, MOST_SUBJECTS = 6, 4


@dataclass(frozen=True)
class Styles:
    """The looks of each label of a run.

    Attributes:
        looks: classes of the style sheet, by label.
        roles: ``subject``, ``rival`` or ``ablation``, by label.
    """

    looks: Mapping[str, str]
    roles: Mapping[str, str]

    @classmethod
    def of(cls, infos: Iterable[Mapping[str, Any]]) -> Styles:
        """Of all rows of a run."""
        rows = {info["label"]: info for info in infos}
        ordered = sorted(rows, key=lambda label: (rows[label]["role"] != "subject", label))
        free: dict[int, str] = {}
        seen: dict[str, int] = defaultdict(int)
        looks = {}
        for label in ordered:
            row = rows[label]
            colour = "g" if row["role"] == "rival" else f"c{_colour(_family(row), free)}"
            dashed = f" d{seen[colour] % DASHES}" if seen[colour] else ""
            seen[colour] += 1
            looks[label] = f"{colour}{dashed}{' b' if row['role'] == 'subject' else ''}"
        return cls(looks, {label: row["role"] for label, row in rows.items()})

    def chosen(self, labels: Iterable[str], ranks: Iterable[tuple[str, float]]) -> list[str]:
        """Of the labels those to draw: what is asked about first, and of each kind those that come lowest anywhere.

        Args:
            ranks: values of labels, several of each.
        """
        found: dict[str, list[float]] = defaultdict(list)
        for label, value in ranks:
            found[label].append(value)
        last = (math.inf, math.inf)
        lowest = {label: (min(values), statistics.median(values)) for label, values in found.items()}
        ordered = sorted(dict.fromkeys(labels), key=lambda label: lowest.get(label, last))
        subjects = [label for label in ordered if self.roles.get(label) == "subject"]
        others = [label for label in ordered if self.roles.get(label) != "subject"]
        few = subjects[: max(MOST_SUBJECTS, MOST_LINES - len(others))]
        return few + others[: MOST_LINES - len(few)]


def _family(row: Mapping[str, Any]) -> str:
    """What rows share that have one colour."""
    return " ".join([row["method"], *(spec for axis, spec in row["picks"].items() if axis != "storage")])


def _colour(family: str, taken: dict[int, str]) -> int:
    """The number of its colour: of its name, or the next that no other family has."""
    count = len(COLOURS["light"])
    first = zlib.crc32(family.encode(errors="replace")) % count
    for step in range(count):
        place = (first + step) % count
        if taken.setdefault(place, family) == family:
            return place
    return first


def variables(theme: str) -> str:
    """The colours of a theme, for a style sheet."""
    named = {"paper": PAPER, "ink": INK, "muted": MUTED, "grid": GRID, "grey": GREY}
    told = [f"--{name}:{colours[theme]}" for name, colours in named.items()]
    for letter, colours in (("c", COLOURS), ("h", CELLS)):
        told += [f"--{letter}{place}:{colour}" for place, colour in enumerate(colours[theme])]
    return ";".join(told)


def style_sheet() -> str:
    """The style sheet of all plots, in a page or in a file; it follows the reader's theme."""
    classes = [f".plot .c{place}{{--own:var(--c{place})}}" for place in range(len(COLOURS["light"]))]
    classes += [f".plot .h{place}{{fill:var(--h{place})}}" for place in range(len(CELLS["light"]))]
    return "\n".join([
        f":root{{{variables('light')}}}",
        f"@media (prefers-color-scheme:dark){{:root{{{variables('dark')}}}}}",
        # Paper is white.
        f"@media print{{:root{{{variables('light')}}}}}",
        resources.files("blockshock.report").joinpath("templates/plot.css").read_text(encoding="utf-8").strip(),
        *classes,
    ])  # fmt: skip
