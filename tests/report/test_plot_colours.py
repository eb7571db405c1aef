"""Colours of plots: everybody can tell them apart, in both themes, and a row has the same one everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rows import Info, run_of, timed

from blockshock.report.plots.style import CELLS, COLOURS, GREY, INK, MUTED, PAPER, Styles, style_sheet

OURS, SLOW = "block_shock gathered 1100", "block_shock cusparselt 1100"
RIVALS = ("dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")
THEMES = ["light", "dark"]
APART = 20.0
"""The least distance in CIELAB between two colours of a palette, for readers of any colour vision. Two patches beside
each other can be told apart at 2; lines are thin, and far from each other."""
# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0: of linear RGB.
VISIONS = {
    "trichromacy": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    parts_ = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts_ <= 0.04045, parts_ / 12.92, ((parts_ + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    high, low = sorted((float(XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    shares = XYZ @ light.clip(0, 1) / (XYZ @ np.ones(3))
    x, y, z = np.where(shares > (6 / 29) ** 3, np.cbrt(shares), shares / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: tuple[str, ...], vision: str) -> tuple[float, str, str]:
    seen = {colour: lab(VISIONS[vision] @ linear(colour)) for colour in colours}
    pairs = itertools.combinations(colours, 2)
    return min((float(np.linalg.norm(seen[one] - seen[other])), one, other) for one, other in pairs)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", VISIONS)
def test_colours_can_be_told_apart_with_any_colour_vision(theme: str, vision: str) -> None:
    distance, *pair = nearest((*COLOURS[theme], GREY[theme]), vision)
    assert distance > APART, pair


def test_a_palette_that_some_cannot_read_is_caught() -> None:
    red_green = ("#2a9457", "#a1744a", "#3a7fd5")
    assert nearest(red_green, "trichromacy")[0] > APART > nearest(red_green, "deuteranopia")[0]


@pytest.mark.parametrize("theme", THEMES)
def test_colours_and_texts_stand_out_from_their_page(theme: str) -> None:
    assert min(contrast(colour, PAPER[theme]) for colour in (*COLOURS[theme], GREY[theme])) >= 3
    assert min(contrast(text[theme], PAPER[theme]) for text in (INK, MUTED)) >= 4.5
    assert min(contrast(INK[theme], cell) for cell in CELLS[theme]) >= 4.5
    assert all(f"--c{place}:{colour}" in style_sheet() for place, colour in enumerate(COLOURS[theme]))


def styles_of(*infos: Info) -> Styles:
    return Styles.of(run_of(list(infos)).infos)


def test_a_row_has_one_colour_everywhere_and_rivals_are_grey() -> None:
    def one(label: str) -> Info:
        return timed(label, 64, 4, 1.0)

    alone, among = styles_of(one(OURS)), styles_of(*map(one, (SLOW, OURS, f"{OURS} compressed", "new x", *RIVALS)))
    colour = alone.looks[OURS].split()[0]
    assert among.looks[OURS] == f"{colour} b"
    assert among.looks[f"{OURS} compressed"] == f"{colour} d1 b", "the same weights, stored in another way"
    greys = [among.looks[rival] for rival in RIVALS]
    assert {look.split()[0] for look in greys} == {"g"}
    assert len(set(greys[:4])) == 4
    assert {among.looks[label].split()[0] for label in (OURS, SLOW)} != {colour}


def test_as_many_families_as_there_are_colours_have_one_each() -> None:
    styles = styles_of(*(timed(f"block_shock kernel{number} 1100", 64, 4, 1.0) for number in range(6)))
    assert len({look.split()[0] for look in styles.looks.values()}) == 6
