"""How the kernel streamed goes about a product: how large its blocks are, and how many share the columns of a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property

import torch

MOST_TOKENS = 128
"""Of one launch."""
WARPS, STEP = 8, 128
"""Of a block; columns of a step, of 16 bits."""
_OWN_BYTES = 1 << 10
"""Of shared memory that each block takes for the system."""


@dataclass(frozen=True)
class Plan:
    """Of one launch.

    Attributes:
        token_tiles: of eight tokens, as many as a block multiplies; those that are missing are zeros.
        row_tiles: of 16 rows, for each of eight warps.
        stages: steps that are under way at a time.
        blocks: of a multiprocessor.
        splits: blocks that share the columns of the same rows.
        clusters: whether these add up in each other's shared memory; otherwise through the GPU's memory.
        eight_bits: numbers have them, so that a step has twice the columns.
        one_tile: the metadata of 16 rows and a step's columns are those of all, and are not read again.
    """

    token_tiles: int
    row_tiles: int
    stages: int
    blocks: int
    splits: int = 1
    clusters: bool = True
    eight_bits: bool = False
    one_tile: bool = False

    @cached_property
    def tokens(self) -> int:
        return 8 * self.token_tiles

    @cached_property
    def rows(self) -> int:
        """Of a block."""
        return 16 * WARPS * self.row_tiles

    @cached_property
    def columns(self) -> int:
        """Of a step."""
        return STEP << self.eight_bits

    @cached_property
    def shared_bytes(self) -> int:
        """Of a block: kept values, metadata and x of each stage, or, once they are multiplied, the sums."""
        metadata = 0 if self.one_tile else self.columns // 8
        stage = self.rows * (STEP + metadata) + self.tokens * STEP * 2
        return max(self.stages * stage, 4 * self.tokens * (self.rows + 4))

    def definitions(self) -> dict[str, int]:
        """As macros of the source."""
        return {name.upper(): int(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Shape:
    """Row tiles, stages and blocks of a plan, and the numbers of splits it is made with.

    Attributes:
        spread: blocks of a multiprocessor that splits make, as far as there are rows for it.
    """

    row_tiles: int
    stages: int
    blocks: int
    splits: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    spread: int = 1


# By token tiles, the first that a GPU has the shared memory for: what was fastest on H100 and H200 over layers from
# 4096 x 4096 to 40960 x 40960; behind, what fits GPUs of 100 KiB.
_SHAPES: dict[int, tuple[_Shape, ...]] = {
    1: (_Shape(1, 5, 2), _Shape(1, 2, 2)),
    2: (_Shape(1, 5, 2), _Shape(1, 4, 2), _Shape(1, 3, 1)),
    4: (_Shape(1, 4, 2), _Shape(1, 3, 1)),
    8: (_Shape(2, 2, 2, splits=(1, 2, 4, 6, 8), spread=2), _Shape(1, 2, 1)),
    16: (_Shape(2, 2, 1), _Shape(1, 2, 1)),
}
# Of few tokens: where twice the rows make one wave of blocks out of two.
_ONE_WAVE = _Shape(2, 4, 1)


@cache
def plan_for(
    N: int, K: int, tokens: int, device: torch.device, eight_bits: bool = False, one_tile: bool = False
) -> Plan:
    """The plan for at most MOST_TOKENS tokens on that GPU."""
    properties = torch.cuda.get_device_properties(device)
    token_tiles = next(tiles for tiles in _SHAPES if 8 * tiles >= tokens)
    shapes, processors = _SHAPES[token_tiles], properties.multi_processor_count
    if token_tiles <= 4 and processors < -(-N // (16 * WARPS)) <= 2 * processors:
        shapes = (_ONE_WAVE, *shapes)
    room = properties.shared_memory_per_multiprocessor
    for shape in shapes:
        sizes = token_tiles, shape.row_tiles, shape.stages, shape.blocks, 1
        plan = Plan(*sizes, properties.major >= 9, eight_bits, one_tile)
        if plan.blocks * (plan.shared_bytes + _OWN_BYTES) <= room:
            return replace(plan, splits=_splits(shape, -(-N // plan.rows), -(-K // plan.columns), processors))
    return plan_for(N, K, tokens // 2, device, eight_bits, one_tile)  # so many sums need more than there is


def _splits(shape: _Shape, row_blocks: int, steps: int, processors: int) -> int:
    """Blocks that share the columns of a row: as many as there is room for.

    A cluster lies in one of the GPU's parts, where a few multiprocessors are left over: more than two blocks of a
    cluster find four of five. More than six are for rows of more than one wave alone: these are split as finely as can
    be, so that the last wave is short.
    """
    if row_blocks > processors:
        return min(shape.splits[-1], steps)
    room = processors * shape.spread
    fits = [splits for splits in shape.splits[:-1] if row_blocks * splits <= (room if splits <= 2 else 0.8 * room)]
    return min(max(fits, default=1), steps)
