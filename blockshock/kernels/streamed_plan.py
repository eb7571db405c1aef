"""How the kernel streamed goes about a product: how large its blocks are, and how many share the columns of a row."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from typing import NamedTuple

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
        ahead: memory is asked for two steps of a row of W at a time, the second of which waits in the cache.
    """

    token_tiles: int
    row_tiles: int
    stages: int
    blocks: int
    splits: int = 1
    clusters: bool = True
    eight_bits: bool = False
    one_tile: bool = False
    ahead: bool = False

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

    def steps(self, K: int) -> int:
        """Of a block."""
        return -(-K // (self.columns * self.splits))

    def definitions(self) -> dict[str, int]:
        """As macros of the source."""
        return {name.upper(): int(value) for name, value in asdict(self).items()}


class _Gpu(NamedTuple):
    """What plans are chosen by.

    Attributes:
        few_bytes: memory is slow for so many multiprocessors.
    """

    processors: int
    shared_bytes: int
    clusters: bool
    few_bytes: bool


@dataclass(frozen=True)
class _Shape:
    """Row tiles, stages and blocks of a plan, and how fast such blocks are.

    Attributes:
        need: blocks for each multiprocessor that read as fast as memory gives; fewer take as long as so many.
        need_of_few: where memory gives few bytes, if that is not the same.
        rate: of many such blocks, over that of the first shape.
        splits: how many blocks may share the columns of a row.
    """

    row_tiles: int
    stages: int
    blocks: int
    need: float
    need_of_few: float | None = None
    rate: float = 1.0
    splits: tuple[int, ...] = (1, 2, 3, 4, 6, 8)

    def plans(self, token_tiles: int, K: int, gpu: _Gpu, **numbers: bool) -> list[Plan]:
        """Of all splits, each of a step at least, if the GPU has the shared memory for them."""
        whole = Plan(token_tiles, self.row_tiles, self.stages, self.blocks, 1, gpu.clusters, **numbers)
        if self.blocks * (whole.shared_bytes + _OWN_BYTES) > gpu.shared_bytes:
            return []
        return [replace(whole, splits=splits) for splits in self.splits if splits <= whole.steps(K)]

    def cost(self, plan: Plan, N: int, K: int, gpu: _Gpu) -> float:
        """In proportion to the time of a product: rows of the blocks of all waves, times the steps of each.

        Two blocks of a multiprocessor hide from each other what they do before and after their steps, but for one wave,
        and places that clusters did not find in the first they find later.
        """
        steps, all_blocks, places = plan.steps(K), -(-N // plan.rows) * plan.splits, gpu.processors * self.blocks
        held = int(places * (_IN_CLUSTERS[plan.splits] if plan.clusters else 1))
        if all_blocks > held and plan.splits > 1 and steps < _LEAST_OF_WAVES:
            return math.inf
        if all_blocks > places and self.blocks > 1:
            held = places
        need = gpu.processors * (self.need_of_few if self.need_of_few and gpu.few_bytes else self.need)
        waves, rest = divmod(all_blocks, held)
        blocks = waves * max(held, need) + (max(rest, need) if rest else 0)
        seen = blocks if self.blocks == 1 else min(blocks, held)
        beside = _BEGIN + (_SUM / plan.tokens if plan.splits > 1 else 0)
        return plan.rows * (blocks * steps + seen * beside) / self.rate


_IN_CLUSTERS = {1: 1.0, 2: 1.0, 3: 0.88, 4: 0.88, 6: 0.8, 8: 0.88}
"""By splits, of the places for blocks those that clusters find: each lies in one of the GPU's parts, which are of 14 to
18 multiprocessors."""
_BEGIN, _SUM, _LEAST_OF_WAVES = 2, 24, 8
"""Steps: that pass before a block's first product; for the sum of splits, times the tokens; of a split in waves."""
_FEW_BYTES = 30e9
"""A second, that memory gives a multiprocessor: an H100's gives 25, an H200's 37."""
_LONG = 20
"""Steps of a block, from which on it is faster to ask memory that gives few bytes for two at a time."""

# By token tiles the shapes, and of each those for GPUs of less shared memory: the first that there is room for. Numbers
# were fitted to the times of all plans on an H100 and an H200, of 50 layers from 1024 x 4096 and 3584 x 18944 to
# 152064 x 5120 and 40960 x 40960: what is chosen takes 1 to 3 % longer than what was fastest, in the mean.
_NARROW = partial(_Shape, 1, need=0.72)
_WIDE = _Shape(2, 4, 1, 0.5, rate=1.03, splits=(1, 2, 4, 6, 8))
_SHAPES = {
    1: ((_NARROW(5, 2), _NARROW(2, 2)), (_WIDE,)),
    2: ((_NARROW(5, 2), _NARROW(4, 2), _NARROW(3, 1)), (_WIDE,)),
    4: (
        (_Shape(1, 4, 2, 2.22, 0.66), _Shape(1, 3, 1, 0.66)),
        (_Shape(2, 4, 1, 0.74, 0.55, rate=1.04),),
        (_Shape(1, 8, 1, 0.95, rate=0.97, splits=(1, 2, 3)),),
    ),
    8: ((_Shape(2, 2, 2, 1.41, 1.22), _Shape(1, 2, 1, 1.0)), (_Shape(2, 4, 1, 1.05, 0.97, rate=1.15),)),
    16: ((_Shape(2, 2, 1, 1.0), _Shape(1, 2, 1, 1.0)),),
}


@cache
def plan_for(
    N: int, K: int, tokens: int, device: torch.device, eight_bits: bool = False, one_tile: bool = False
) -> Plan:
    """The plan for at most MOST_TOKENS tokens on that GPU."""
    gpu = _gpu(device)
    token_tiles = next(tiles for tiles in _SHAPES if 8 * tiles >= tokens)
    numbers = {"eight_bits": eight_bits, "one_tile": one_tile}
    tried: list[tuple[float, Plan]] = []
    for shapes in _SHAPES[token_tiles]:
        for shape in shapes:
            if plans := shape.plans(token_tiles, K, gpu, **numbers):
                tried += [(shape.cost(plan, N, K, gpu), plan) for plan in plans]
                break
    if not tried:  # so many sums need more than there is
        return plan_for(N, K, tokens // 2, device, eight_bits, one_tile)
    # Of several that take as long the one of most splits: what is left for a last wave is short.
    _, plan = min(tried, key=lambda one: (one[0], -one[1].splits))
    return replace(plan, ahead=gpu.few_bytes and token_tiles <= 8 and not eight_bits and plan.steps(K) >= _LONG)


def _gpu(device: torch.device) -> _Gpu:
    found = torch.cuda.get_device_properties(device)
    # Of the memory's clock, in kHz, both edges.
    bytes_per_s = 2 * 1e3 * found.memory_clock_rate * found.memory_bus_width / 8
    few = 0 < bytes_per_s < _FEW_BYTES * found.multi_processor_count
    return _Gpu(found.multi_processor_count, found.shared_memory_per_multiprocessor, found.major >= 9, few)
