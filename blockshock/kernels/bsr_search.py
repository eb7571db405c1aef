"""The search for the fastest way to run torch's block-sparse kernel, by torch's own tuner, and the check of each try.

The tuner, which torch has beside the kernel as ``minimize``, goes from setting to setting, to the faster neighbour.
Some settings multiply wrongly: a number of stages once gave silent garbage (pytorch issue 113587). So each is timed
only after it multiplied right; those that do not are turned away, and named.

What it costs is compiling, 0.3 to 1 s a setting, and many times that where a thread has more sums than registers: they
then wait in memory, and no such setting is fast. So none of those is tried; the search begins at what torch found good
for blocks of that size, tries MOST_TRIED settings at the most, and leaves how programs are grouped as it is there; and
all neighbours that the tuner may go to next are compiled side by side. Nothing that is compiled goes by the weight's
shape or the octave: of one size of blocks the first search compiles, and the next ones mostly time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from blockshock.kernels.found import Searched
from blockshock.machine import torch_internals

MOST_TRIED = 12
"""Settings of a search."""
LEAST_TILE, MOST_TILE = 16, 256
"""Tokens: Triton multiplies matrices of 16 rows and up."""
REGISTERS = 255
"""Of 32 bits, that a thread of a GPU has at the most; a warp has 32 threads."""


class Setting(NamedTuple):
    """How the kernel runs.

    Attributes:
        tile: tokens that a program multiplies, a power of two.
        group: rows of blocks whose programs go by together, for the cache.
        stages: how many loads are in flight.
        warps: of a program.
    """

    tile: int
    group: int
    stages: int
    warps: int

    def __str__(self) -> str:
        return f"tile {self.tile}, group {self.group}, {self.stages} stages, {self.warps} warps"


LIMITS = Setting(tile=MOST_TILE, group=16, stages=5, warps=8)
STARTS = {
    16: Setting(tile=256, group=1, stages=4, warps=4),
    32: Setting(tile=256, group=1, stages=3, warps=4),
    64: Setting(tile=128, group=1, stages=3, warps=4),
    128: Setting(tile=128, group=4, stages=3, warps=8),
}
"""By the size of blocks: what torch's table of the tuned settings of an A100 has most often from 1024 tokens on, in 16
bits, for more than one stage."""


def default_for(tokens: int) -> Setting:
    """What runs where nothing is searched: one stage, which no compiler reorders."""
    return Setting(tile=tile_for(tokens), group=4, stages=1, warps=4)


def tile_for(tokens: int, most: int = 64) -> int:
    """The tile that holds so many tokens, or the largest."""
    return min(max(1 << (tokens - 1).bit_length(), LEAST_TILE), most)


def spills(setting: Setting, size: int) -> bool:
    """Whether a block's sums, in float32, are more than the registers of a program hold."""
    return size * setting.tile > REGISTERS * 32 * setting.warps


class Found(Searched[Setting]):
    """Of the block-sparse kernel's settings."""

    @staticmethod
    def parse(stored: Any) -> Setting:
        setting = Setting(*stored)
        fits = all(type(value) is int and 1 <= value <= most for value, most in zip(setting, LIMITS, strict=True))
        if not fits or setting.tile < LEAST_TILE or setting.tile & (setting.tile - 1):
            raise ValueError(f"no setting: {stored}")
        return setting


def search(
    size: int,
    tokens: int,
    multiply: Callable[[Setting], torch.Tensor],
    is_right: Callable[[torch.Tensor], bool],
    seconds: Callable[[Callable[[], object]], float],
    prepare: Callable[[Sequence[Setting]], None] = lambda settings: None,
) -> Found:
    """The fastest setting that torch's tuner finds among those that multiply right.

    Args:
        size: of a block.
        tokens: the most that it will be used for.
        multiply: the product by a setting, some of which raise: they take more than the GPU has.
        seconds: of a call.
        prepare: what is to be done before some of these are multiplied by, for all of them at once.
    """
    start = STARTS[size]._replace(tile=tile_for(tokens, STARTS[size].tile))
    taken: dict[Setting, float] = {}
    prepared: set[Setting] = set()
    wrong: list[Setting] = []

    def target(parameters: dict[str, int]) -> float:
        setting = start._replace(**parameters)
        if spills(setting, size):
            raise ValueError(f"the sums of {setting} are more than its registers hold")
        if len(taken.keys() | {setting}) > MOST_TRIED:
            raise ValueError(f"{MOST_TRIED} settings were tried")
        if setting not in prepared:
            # It is a neighbour of the fastest so far, the others of which are likely to be next.
            fastest = min(taken, key=lambda one: taken[one], default=start)
            ahead = {setting, start, *neighbours(fastest)} - prepared
            prepare(sorted(one for one in ahead if not spills(one, size)))
            prepared.update(ahead)
        taken[setting] = math.inf
        if not is_right(multiply(setting)):
            wrong.append(setting)
            raise ValueError(f"{setting} multiplies wrongly")
        taken[setting] = seconds(lambda: multiply(setting))
        return taken[setting]

    def neighbours(setting: Setting) -> set[Setting]:
        searched = _searched(setting)
        steps = ((name, step(name, searched[name], by, searched)) for name in searched for by in (-1, 1))
        return {setting._replace(**{name: value}) for name, value in steps}

    def step(name: str, value: int, direction: int, parameters: dict[str, int]) -> int:
        most = tile_for(tokens, MOST_TILE) if name == "tile" else getattr(LIMITS, name)
        least = LEAST_TILE if name == "tile" else 1
        moved = value + direction if name == "stages" else int(value * 2.0**direction)
        return min(max(moved, least), most)

    found = torch_internals.minimized(target, _searched(start), _searched(default_for(tokens)), step)
    return Found(start._replace(**found) if found else None, tuple(dict.fromkeys(wrong)))


def _searched(setting: Setting) -> dict[str, int]:
    return {name: value for name, value in setting._asdict().items() if name != "group"}
