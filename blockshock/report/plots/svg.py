"""What plots are made of: panels of a few SVG elements, whose looks are the style sheet's.

In a page each panel is an element of its own, so that they stand beside each other or one below the other as there is
room. A file holds them in rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

ACROSS, GAP, HEAD, LINE = 3, 12, 34, 16
MOST_ROWS = 3
"""Of a name."""
SPACE = 'xmlns="http://www.w3.org/2000/svg"'
LETTER = 6.2
"""Pixels of a letter of the size that plots have, on average: what room a text takes."""


@dataclass(frozen=True)
class Panel:
    """A small picture.

    Attributes:
        width, height: in pixels.
        body: its elements.
        says: what it shows, for those who do not see it.
    """

    width: float
    height: float
    body: str
    says: str

    def svg(self, place: str = "") -> str:
        """As an element; ``place`` are attributes that say where in another one."""
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}"'
        least = f'style="min-width:{0.85 * self.width:.0f}px"'
        return f'<svg {place or least} {size} role="img" aria-label="{escape(self.says)}">{self.body}</svg>'


@dataclass(frozen=True)
class Figure:
    """Panels that answer one question, and the rows that had no room among them."""

    panels: list[Panel]
    left_out: tuple[str, ...] = ()


def as_file(panels: Sequence[Panel], title: str, under: str, style: str) -> str:
    """An SVG file of all panels, with its style in it; ``under`` stands below the title, paler."""
    across = 2 if len(panels) == 4 else ACROSS
    rows = [panels[start : start + across] for start in range(0, len(panels), across)]
    wide = max(sum(panel.width + GAP for panel in row) for row in rows) + GAP
    wide = max(wide, 2 * GAP + (LETTER + 1) * len(title), 2 * GAP + LETTER * len(under))
    top, placed = float(HEAD + LINE), []
    for row in rows:
        left = float(GAP)
        for panel in row:
            placed.append(panel.svg(f'x="{left:g}" y="{top:g}"'))
            left += panel.width + GAP
        top += max(panel.height for panel in row) + GAP
    heading = text(GAP, 22, title, "t") + text(GAP, 22 + LINE, under, "m")
    return (
        f'<svg {SPACE} class="plot" viewBox="0 0 {wide:g} {top:g}" width="{wide:g}" height="{top:g}">'
        f'<style>{style}</style><rect class="paper" width="100%" height="100%"/>{heading}{"".join(placed)}</svg>\n'
    )


def px(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, looks: str = "") -> str:
    """Words at a place; ``looks`` are classes."""
    return f'<text{_classes(looks)} x="{px(x)}" y="{px(y)}">{escape(words, quote=False)}</text>'


def heading(words: str, more: str) -> str:
    """The title of a panel, and what it shows in paler letters."""
    return f'<text class="t" x="2" y="12">{escape(words)}<tspan class="m" dx="8">{escape(more)}</tspan></text>'


def path(points: Iterable[tuple[float, float]], looks: str) -> str:
    """A line through the points."""
    return f'<path{_classes(looks)} d="M{"L".join(f"{px(x)} {px(y)}" for x, y in points)}"/>'


def strokes(lines: Iterable[tuple[float, float, float, float]], looks: str) -> str:
    """Straight lines from (x, y) to (x, y), as one element; nothing if there are none."""
    told = "".join(f"M{px(x)} {px(y)}L{px(to_x)} {px(to_y)}" for x, y, to_x, to_y in lines)
    return f'<path{_classes(looks)} d="{told}"/>' if told else ""


def dot(x: float, y: float, looks: str, says: str) -> str:
    """A point that says its value where one rests on it."""
    place = f'cx="{px(x)}" cy="{px(y)}" r="3"'
    return f"<circle{_classes(looks)} {place}><title>{escape(says, quote=False)}</title></circle>"


def box(x: float, y: float, width: float, height: float, looks: str, says: str = "") -> str:
    """A filled rectangle that may say what it is."""
    place = f'x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}"'
    return f"<rect{_classes(looks)} {place}>{f'<title>{escape(says, quote=False)}</title>' if says else ''}</rect>"


def wrapped(words: str, most: int = 22) -> list[str]:
    """A text in as few lines as it takes, as even as they can be, parted at blanks and colons; what is longer still is
    cut."""
    lines = _filled(words, most)
    while len(shorter := _filled(words, max(map(len, lines)) - 1)) == len(lines) and shorter != lines:
        lines = shorter
    lines = lines if len(lines) <= MOST_ROWS else [*lines[: MOST_ROWS - 1], " ".join(lines[MOST_ROWS - 1 :])]
    return [line if len(line) <= most + 1 else f"{line[:most]}…" for line in lines]


def _filled(words: str, most: int) -> list[str]:
    lines = [""]
    for part in re.split(r" |(?=:)", words):
        longer = f"{lines[-1]}{'' if part.startswith(':') else ' '}{part}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= most or not lines[-1] else [*lines, part]
    return lines


def _classes(looks: str) -> str:
    return f' class="{looks}"' if looks else ""


def number(value: float) -> str:
    """A number, short: 1.35M, 20k, 0.002."""
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"
