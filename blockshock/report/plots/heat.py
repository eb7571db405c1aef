"""The map: the ratio to the best dense alternative at each layer and B, and the line where the two break even."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from blockshock.report.plots.panels import layer, spread
from blockshock.report.plots.svg import LETTER, Figure, Panel, box, strokes, text, wrapped
from blockshock.report.points import Against
from blockshock.saved import PHASES, SECTIONS, several

CELL, ROW, TOP, LINE = 48, 26, 54, 14
LAYERS, TOKENS = "layer N×K", "B, rows of x"
"""What the rows and the columns are."""
MOST_LAYERS, MOST_B = 12, 10
LEAST_NAME = 40
"""Letters of a name that have room however few columns there are."""
STEPS = 4
"""Shades to either side of even; the darkest from a factor of two on."""
SURE = ("faster", "slower")


def heat(found: Iterable[Against]) -> Figure | None:
    """A panel for each use and what it was timed in; None where nothing was."""
    grouped: dict[tuple[str, ...], list[Against]] = defaultdict(list)
    for one in found:
        grouped[one.section, one.use, one.workload, one.dtype, one.optimizer or ""].append(one)
    if not grouped:
        return None
    ordered = sorted(grouped, key=lambda key: list(PHASES.values()).index(key[0]))
    differ = [len({key[place] for key in grouped if key[place]}) > 1 for place in range(5)]
    titles = {}
    for key in ordered:
        timed = SECTIONS[key[0]].partition(" (")[0].lower()
        told = (part for part, tells in zip(key[2:], differ[2:], strict=True) if tells and part)
        titles[key] = ", ".join([key[1], timed, *told])
    return Figure([_panel(titles[key], grouped[key]) for key in ordered])


def _rows(found: Iterable[Against]) -> str:
    """Which rows of the method the cells are of, less its name; of a method that has but one nothing."""
    names = list(dict.fromkeys(one.label.removeprefix(one.method).strip() for one in found))
    return names[0] if len(names) == 1 else f"the fastest of {', '.join(name or 'its own' for name in names)}"


def _panel(title: str, found: list[Against]) -> Panel:
    layers = sorted({(one.N * one.K, one.N, one.K) for one in found})
    shown = [(N, K) for _, N, K in spread(layers, MOST_LAYERS)]
    Bs = spread(sorted({one.B for one in found}), MOST_B)
    left = 14 + (LETTER + 1) * max(len(LAYERS), *(len(layer(N, K)) for N, K in shown))
    cells = {
        (shown.index((one.N, one.K)), Bs.index(one.B)): one for one in found if (one.N, one.K) in shown and one.B in Bs
    }
    across, rows = max(CELL * len(Bs), (LETTER + 1) * len(TOKENS)), _rows(cells.values())
    named = wrapped(rows, max(LEAST_NAME, int((left + across) / LETTER))) if rows else []
    top = TOP + LINE * len(named)
    body = text(2, 12, title, "t") + "".join(text(2, 12 + LINE * (1 + at), line, "m") for at, line in enumerate(named))
    body += text(left - 8, top - 8, LAYERS, "m e") + text(left + across / 2, top - 23, TOKENS, "m k")
    body += "".join(text(left + (column + 0.5) * CELL, top - 8, str(B), "m k") for column, B in enumerate(Bs))
    body += "".join(text(left - 8, top + (row + 0.5) * ROW + 4, layer(N, K), "m e") for row, (N, K) in enumerate(shown))
    body += "".join(_cell(left + column * CELL, top + row * ROW, one) for (row, column), one in cells.items())
    edges = list(break_even({place: one.ratio for place, one in cells.items()}))
    drawn = [(left + x * CELL, top + y * ROW, left + to_x * CELL, top + to_y * ROW) for x, y, to_x, to_y in edges]
    body += strokes(drawn, "halo") + strokes(drawn, "even")
    wide = max(left + across, 2 + 8 * len(title), *(2 + LETTER * len(line) for line in named)) + 4
    says = _said(f"{title} ({rows})" if rows else title, cells.values())
    return Panel(math.ceil(wide), top + ROW * len(shown) + 6, body, says)


def _said(title: str, cells: Iterable[Against]) -> str:
    ratios = [one.ratio for one in cells]
    told = f"{min(ratios):.2f} to {max(ratios):.2f} at {several(len(ratios), 'point')}"
    return f"{title}: time over the best dense alternative's, {told}"


def _cell(x: float, y: float, one: Against) -> str:
    """Bold where the verdict is sure, with a tilde where it is not, and plain where the two were not paired."""
    open_ = "~" if one.verdict and one.verdict not in SURE else ""
    interval = "" if one.low is None or one.high is None else f" ({one.low:.3f}–{one.high:.3f})"
    told = f"{one.label} takes {one.ratio:.3f}{interval} of {one.rival}'s time: {one.verdict or 'not paired'}"
    weight = " w" if one.verdict in SURE else ""
    words = f"{open_}{one.ratio:.2f}" if one.ratio < 100 else "100+"
    return box(x, y, CELL - 1, ROW - 1, f"h{shade(one.ratio)}", told) + text(
        x + CELL / 2, y + ROW / 2 + 4, words, f"k p{weight}"
    )


def shade(ratio: float) -> int:
    """The number of a ratio's colour: 0 of twice as fast, 8 of twice as slow; the middle one within 3 % of even."""
    far = math.log2(ratio)
    if abs(far) < math.log2(1.03):
        return STEPS
    steps = min(STEPS, 1 + int(min(abs(far), 1.0) * STEPS))
    return STEPS + (steps if far > 0 else -steps)


def break_even(ratios: dict[tuple[int, int], float]) -> Iterable[tuple[int, int, int, int]]:
    """Edges (x, y) to (x, y), in cells, between neighbours of which one is faster and the other is not."""
    for (row, column), ratio in ratios.items():
        for down, right in ((1, 0), (0, 1)):
            other = ratios.get((row + down, column + right))
            if other is not None and (ratio < 1) != (other < 1):
                x, y = column + 1, row + 1
                yield (x - down, y - right, x, y)
