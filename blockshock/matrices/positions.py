"""Where the two kept of each four lie: a 2:4 mask as packed positions, two groups a byte, made and read in few passes.

Eight columns of a mask are eight bytes, which are one word of 64 bits: what a word stands for is looked up.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from blockshock.errors import MaskError
from blockshock.matrices.blocks_of_rows import row_blocks
from blockshock.matrices.masks import Mask

_COLUMNS = 8
"""Of a byte of positions, and of a word of a mask."""
_NOT_2TO4 = 255
"""Stands for eight columns of which a group does not keep two: the last position is never the lower of two."""
_GATHERING = 0x0102040810204080
"""Times a word whose bytes are 0 or 1 it has the eight of them in its uppermost byte, the first one lowest."""


def positions_of(mask_RK: torch.Tensor, first_row: int = 0) -> torch.Tensor:
    """The packed positions (R, ⌈K/8⌉) of a 2:4 mask, uint8.

    Raises:
        MaskError: a group does not keep exactly two; row (counted from ``first_row``) and group are named.
    """
    if mask_RK.ndim != 2 or mask_RK.dtype != torch.bool or mask_RK.shape[1] % 4 or not mask_RK.shape[1]:
        raise MaskError(
            f"rows of a mask are a boolean (R, K) tensor, K a multiple of 4; got {mask_RK.dtype} {tuple(mask_RK.shape)}"
        )
    words = _words(mask_RK).mul(_GATHERING).bitwise_right_shift_(56)  # from −128 on, and so counted from the end
    positions = torch.take(_positions_of_bits(mask_RK.device), words)
    if (positions == _NOT_2TO4).any():
        wrong = (mask_RK.unflatten(1, (-1, 4)).sum(-1) != 2).nonzero()
        row, group = wrong[0].tolist()
        kept = int(mask_RK[row, 4 * group : 4 * group + 4].sum())
        raise MaskError(f"not 2:4: row {first_row + row}, group {group} keeps {kept} of 4")
    if mask_RK.shape[1] % _COLUMNS:
        positions[:, -1] &= 15
    return positions


def unpacked(positions: torch.Tensor, K: int) -> torch.Tensor:
    """Positions 0–3 of the two kept of each four, in order, int64 (R, K/4, 2)."""
    nibbles = torch.stack((positions & 15, positions >> 4), dim=-1).flatten(1)[:, : K // 4].long()
    return torch.stack((nibbles & 3, nibbles >> 2), dim=-1)


def _words(mask_RK: torch.Tensor) -> torch.Tensor:
    """The mask as int64 (R, ⌈K/8⌉), a last group that is alone filled up with one that keeps its first two."""
    if mask_RK.shape[1] % _COLUMNS:
        mask_RK = torch.cat([mask_RK, mask_RK.new_tensor([1, 1, 0, 0]).expand(len(mask_RK), 4)], dim=1)
    in_words = mask_RK.stride() == (mask_RK.shape[1], 1) and mask_RK.storage_offset() % _COLUMNS == 0
    if not in_words or mask_RK.data_ptr() % _COLUMNS:
        mask_RK = mask_RK.clone(memory_format=torch.contiguous_format)
    return mask_RK.view(torch.int64)


@cache
def _positions_of_bits(device: torch.device) -> torch.Tensor:
    """Of each eight columns, as the bits of a number, the byte of positions; uint8 (256,)."""
    places = [[place for place in range(4) if bits >> place & 1] for bits in range(16)]
    nibbles = [_NOT_2TO4 if len(kept) != 2 else kept[0] | kept[1] << 2 for kept in places]
    both = [min(low | high << 4, _NOT_2TO4) for high in nibbles for low in nibbles]
    return torch.tensor(both, dtype=torch.uint8).to(device)


@cache
def _masks_of_positions(device: torch.device) -> torch.Tensor:
    """The word of a mask that each byte of positions stands for; int64 (256,)."""
    low, high = (torch.arange(256) >> shift & 15 for shift in (0, 4))
    kept = torch.stack([low & 3, low >> 2, 4 + (high & 3), 4 + (high >> 2)], dim=1)
    return torch.zeros(256, _COLUMNS, dtype=torch.bool).scatter_(1, kept, True).view(torch.int64).flatten().to(device)


class KeptMask(Mask):
    """The mask of packed positions (N, ⌈K/8⌉), which it holds."""

    def __init__(self, positions: torch.Tensor, K: int) -> None:
        super().__init__(len(positions), K)
        self._positions = positions

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        words = torch.take(_masks_of_positions(self._positions.device), self._positions[start:stop].long())
        mask_RK = words.view(torch.bool)
        return mask_RK if mask_RK.shape[1] == self.K else mask_RK[:, : self.K].contiguous()


class Positions:
    """The packed positions of a mask, by rows: of a tile looked up once.

    Args:
        mask: 2:4. What of it is not is told when it is asked for.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask, self._of_tile = mask, _of_tile(mask)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Of rows [start, stop), uint8 (stop - start, ⌈K/8⌉); not to be written to.

        Raises:
            MaskError: as of ``positions_of``.
        """
        if isinstance(self._mask, KeptMask):
            return self._mask._positions[start:stop]
        if self._of_tile is None:
            return positions_of(self._mask.rows(start, stop), start)
        which = torch.arange(start, stop, device=self._of_tile.device) % len(self._of_tile)
        across = self._mask.K // (_COLUMNS * self._of_tile.shape[1])
        return self._of_tile[which].repeat(1, across)


def _of_tile(mask: Mask) -> torch.Tensor | None:
    """The positions of a mask's tile, as often beside itself as fills whole bytes; None where there are none."""
    if mask.tile is None or mask.K % (width := math.lcm(mask.tile.shape[1], _COLUMNS)):
        return None
    try:
        return positions_of(mask.tile.repeat(1, width // mask.tile.shape[1]))
    except MaskError:  # which row of the mask that is, its rows tell
        return None


def mask_positions(mask: Mask) -> torch.Tensor:
    """The packed positions (N, ⌈K/8⌉) of a whole mask: those that it holds, or made in row blocks."""
    if isinstance(mask, KeptMask):
        return mask._positions
    positions, blocks = Positions(mask), row_blocks(mask.N, 8 * mask.K)
    return torch.cat([positions.rows(start, stop) for start, stop in blocks])
