"""Rows made block by block from a seed, so that any slice can be made anywhere, alike, without the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from blockshock.errors import InputError

BLOCK_ROWS = 256
"""Rows that share one random stream. Part of what a seed means: changing it changes every seeded tensor."""


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on the key alone (SplitMix64 finalizer, Steele, Lea and Flood, 2014)."""
    state = 0
    for part in key:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state & 0x7FFFFFFFFFFFFFFF)


def seeded_rows(start: int, stop: int, total: int, make_block: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    """Rows [start, stop) of a matrix of ``total`` rows that is made in blocks of BLOCK_ROWS.

    Args:
        make_block: ``(block index, rows in it) → tensor (rows, …)``; must not depend on anything else.
    """
    pieces = []
    first_block = start // BLOCK_ROWS
    for block in range(first_block, max(-(-stop // BLOCK_ROWS), first_block + 1)):
        first = block * BLOCK_ROWS
        rows = make_block(block, min(BLOCK_ROWS, total - first))
        pieces.append(rows[max(start - first, 0) : stop - first])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def check_slice(start: int, stop: int, total: int, what: str = "rows") -> None:
    """Raises InputError unless [start, stop) is a part of [0, total)."""
    if not 0 <= start <= stop <= total:
        raise InputError(f"{what} [{start}, {stop}) are not all there: they must lie in [0, {total})")


def row_blocks(rows: int, row_bytes: int, block_bytes: int = 64 << 20, multiple: int = 4) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive row blocks of about ``block_bytes`` each, starts being multiples of ``multiple``."""
    step = max(block_bytes // max(row_bytes, 1) // multiple * multiple, multiple)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
