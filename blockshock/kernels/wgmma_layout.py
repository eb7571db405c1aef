"""W as the kernel wgmma reads it: tile by tile, each as it is to lie in shared memory.

There its tensor cores find kept values by a descriptor, and each thread its metadata (PTX ISA, "Asynchronous Warpgroup
Level Matrix Instructions": swizzle of 64 bytes, and metadata of wgmma.mma_async.sp in eight bits, k64).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from blockshock.kernels.formats import steps_of

FEATURES, CLUSTER = 128, 2
"""Of a tile, whose columns are those of a tile of x; and of how many tiles features are a multiple."""
TILE_BYTES = FEATURES * (64 + 16)
"""Kept values of 128 columns, and their positions."""
_BEYOND = 0x44
"""Positions of two groups beyond W: the first two of four. Their values are zeros."""


def tiles_of(N: int, K: int) -> tuple[int, int]:
    """Of so many features and columns: how many lie below and beside each other."""
    return -(-N // (FEATURES * CLUSTER)) * CLUSTER, steps_of(K)


def in_tiles(kept_RJ: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Kept values (R, K/2) of eight bits and their packed positions (R, K/8): uint8 (tiles of R, of K, TILE_BYTES).

    A tile has the values of its first 64 features and of the others, then the metadata of these and of those. Of values
    a feature has 64 bytes, whose chunk c, of 16, is at c ^ (feature // 2 % 4). Of metadata each of 128 threads has two
    words: thread 32w + 4g + 2h + b has columns 32h to 32h + 31 of feature 16w + 8b + g, of both halves of the columns.
    """
    R, J = kept_RJ.shape
    down, steps = tiles_of(R, 2 * J)
    missing = FEATURES * down - R
    values = F.pad(kept_RJ.view(torch.uint8), (0, 64 * steps - J, 0, missing))
    places = F.pad(positions, (0, 16 * steps - positions.shape[1], 0, missing), value=_BEYOND)
    chunks = values.view(down, 2, 8, 4, 2, steps, 4, 16).permute(0, 5, 1, 2, 4, 3, 6, 7)
    pair, chunk = torch.arange(4, device=values.device)[:, None], torch.arange(4, device=values.device)
    swizzled = chunks[:, :, :, :, :, pair, chunk ^ pair].transpose(4, 5)
    words = places.view(down, 2, 4, 2, 8, steps, 2, 2, 4).permute(0, 5, 1, 2, 4, 7, 3, 6, 8)
    return torch.cat([swizzled.reshape(down, steps, -1), words.reshape(down, steps, -1)], dim=2)
