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


class SeededRows:
    """A matrix of ``total`` rows that is made in blocks of BLOCK_ROWS.

    A block of which only the beginning was asked for is held: those who read all rows ask for the rest of it next.

    Args:
        make_block: ``(block index, rows in it) → tensor (rows, …)``; must not depend on anything else.
    """

    def __init__(self, total: int, make_block: Callable[[int, int], torch.Tensor]) -> None:
        self._total, self._make = total, make_block
        self._held: tuple[int, torch.Tensor] | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as a new tensor."""
        pieces, held = [], self._held
        first_block = start // BLOCK_ROWS
        for block in range(first_block, max(-(-stop // BLOCK_ROWS), first_block + 1)):
            first = block * BLOCK_ROWS
            was_held = held is not None and held[0] == block
            rows = held[1] if held and was_held else self._make(block, min(BLOCK_ROWS, self._total - first))
            pieces.append(rows[max(start - first, 0) : stop - first])
        is_cut = stop < first + len(rows)
        self._held = (block, rows) if is_cut else None
        if len(pieces) > 1:
            return torch.cat(pieces)
        return pieces[0].clone() if is_cut or was_held else pieces[0]


def check_slice(start: int, stop: int, total: int, what: str = "rows") -> None:
    """Raises InputError unless [start, stop) is a part of [0, total)."""
    if not 0 <= start <= stop <= total:
        raise InputError(f"{what} [{start}, {stop}) are not all there: they must lie in [0, {total})")


def row_blocks(rows: int, row_bytes: int, block_bytes: int = 64 << 20, multiple: int = 4) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive row blocks of about ``block_bytes`` each, starts being multiples of ``multiple``."""
    step = max(block_bytes // max(row_bytes, 1) // multiple * multiple, multiple)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
