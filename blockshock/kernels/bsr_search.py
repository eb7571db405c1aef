"""The search for the fastest way to run torch's block-sparse kernel, by torch's own tuner, and the check of each try.

The tuner, which torch has beside the kernel as ``minimize``, goes from setting to setting, to the faster neighbour.
Some settings multiply wrongly: a number of stages once gave silent garbage (pytorch issue 113587). So each is timed
only after it multiplied right; those that do not are turned away, and named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from blockshock.kernels.found import Searched
from blockshock.machine import torch_internals

LEAST_TILE, MOST_TILE = 16, 256
"""Tokens: Triton multiplies matrices of 16 rows and up."""


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

    def meta(self, tokens: int) -> dict[str, int]:
        """As torch takes it, for a multiple of ``tile`` tokens."""
        return {
            "SPLIT_N": tokens // self.tile,
            "GROUP_SIZE_ROW": self.group,
            "num_stages": self.stages,
            "num_warps": self.warps,
        }


LIMITS = Setting(tile=MOST_TILE, group=16, stages=5, warps=16)


def default_for(tokens: int) -> Setting:
    """What runs where nothing is searched: one stage, which no compiler reorders."""
    return Setting(tile=tile_for(tokens), group=4, stages=1, warps=4)


def tile_for(tokens: int, most: int = 64) -> int:
    """The tile that holds so many tokens, or the largest."""
    return min(max(1 << (tokens - 1).bit_length(), LEAST_TILE), most)


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
    tokens: int,
    multiply: Callable[[Setting], torch.Tensor],
    is_right: Callable[[torch.Tensor], bool],
    seconds: Callable[[Callable[[], object]], float],
) -> Found:
    """The fastest setting that torch's tuner finds among those that multiply right.

    Args:
        tokens: the most that it will be used for.
        multiply: the product by a setting, some of which raise: they take more than the GPU has.
        seconds: of a call.
    """
    wrong: list[Setting] = []

    def target(parameters: dict[str, int]) -> float:
        setting = Setting(**parameters)
        if not is_right(multiply(setting)):
            wrong.append(setting)
            raise ValueError(f"{setting} multiplies wrongly")
        return seconds(lambda: multiply(setting))

    def step(name: str, value: int, direction: int, parameters: dict[str, int]) -> int:
        most = tile_for(tokens, MOST_TILE) if name == "tile" else getattr(LIMITS, name)
        least = LEAST_TILE if name == "tile" else 1
        moved = value + direction if name == "stages" else int(value * 2.0**direction)
        return min(max(moved, least), most)

    safe = default_for(tokens)
    found = torch_internals.minimized(target, safe._replace(stages=3)._asdict(), safe._asdict(), step)
    return Found(Setting(**found) if found else None, tuple(dict.fromkeys(wrong)))
