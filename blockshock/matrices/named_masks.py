"""The named masks of the suite: fixed patterns, random, by magnitude, and the transposable tiles.

A builder takes a weight source and returns the mask of the first half; the second half is its complement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch

from blockshock.errors import MaskError
from blockshock.matrices.blocks_of_rows import generator, seeded_rows
from blockshock.matrices.masks import LazyMask, Mask, TiledMask
from blockshock.matrices.sizes import check_shape
from blockshock.matrices.weights import WeightSource
from blockshock.registry import Registry

MaskBuilder = Callable[..., Mask]
MASKS: Registry[MaskBuilder] = Registry("mask")
SIX_PATTERNS = ("1100", "1010", "1001", "0110", "0101", "0011")
"""The six ways to keep two of four; the first three and the last three, reversed, are complements of each other."""


def build_mask(spec: str, source: WeightSource) -> Mask:
    """The mask that a spec such as ``1100`` or ``random`` names, for these weights."""
    builder, parameters = MASKS.resolve(spec, skip=1)
    check_shape(source.N, source.K)
    return builder(source, **parameters)


def pattern_mask(pattern: str, N: int, K: int, device: torch.device | str = "cpu") -> Mask:
    """One pattern of four, such as ``1100``, in every group of every row."""
    if pattern not in SIX_PATTERNS:
        raise MaskError(f"{pattern!r} is none of the patterns that keep two of four: {', '.join(SIX_PATTERNS)}")
    return TiledMask(torch.tensor([[bit == "1" for bit in pattern]], device=device), N, K)


def _register_pattern(pattern: str) -> None:
    def build(source: WeightSource) -> Mask:
        return pattern_mask(pattern, source.N, source.K, source.device)

    MASKS.register(pattern)(build)


for _pattern in SIX_PATTERNS:
    _register_pattern(_pattern)


@cache
def _six(device: torch.device) -> torch.Tensor:
    return torch.tensor([[bit == "1" for bit in pattern] for pattern in SIX_PATTERNS], device=device)


@MASKS.register("random")
def random_mask(source: WeightSource) -> Mask:
    """Two of four drawn uniformly for each group, from the source's seed."""
    groups, device = source.K // 4, source.device

    def block(index: int, rows: int) -> torch.Tensor:
        draws = torch.randint(6, (rows, groups), device=device, generator=generator(device, source.seed, 1, index))
        return _six(device)[draws].flatten(1)

    return LazyMask(source.N, source.K, lambda start, stop: seeded_rows(start, stop, source.N, block))


@MASKS.register("magnitude")
def magnitude_mask(source: WeightSource) -> Mask:
    """The two largest |w| of each four; among equals the first stay (Mishra et al., arXiv 2104.08378, 2021)."""

    return LazyMask(source.N, source.K, lambda start, stop: two_largest(source.rows(start, stop).abs()))


def two_largest(scores_RK: torch.Tensor) -> torch.Tensor:
    """The mask (R, K) of the two largest of each four; among equals the first stay."""
    scores_R4 = scores_RK.unflatten(1, (-1, 4))
    beaten = torch.zeros(scores_R4.shape, dtype=torch.int8, device=scores_RK.device)
    for i, j in itertools.combinations(range(4), 2):
        first_wins = scores_R4[..., i] >= scores_R4[..., j]
        beaten[..., j] += first_wins
        beaten[..., i] += ~first_wins
    return (beaten < 2).flatten(1)


@cache
def transposable_tiles(device: torch.device) -> torch.Tensor:
    """The 90 boolean 4 × 4 tiles with two kept in every row and every column, as (90, 4, 4).

    Source: Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021. The complement of each is among them.
    """
    rows = _six(torch.device("cpu"))
    tiles = [rows[list(choice)] for choice in itertools.product(range(6), repeat=4)]
    return torch.stack([tile for tile in tiles if (tile.sum(0) == 2).all()]).to(device)


def _check_rows(N: int) -> None:
    if N % 4:
        raise MaskError(f"a transposable mask needs N to be a multiple of 4, got N = {N}")


def _untile(tiles_RG44: torch.Tensor) -> torch.Tensor:
    return tiles_RG44.transpose(1, 2).flatten(2).flatten(0, 1)


def best_tiles(scores_RK: torch.Tensor) -> torch.Tensor:
    """The mask (R, K) that keeps the largest sum of scores of each 4 × 4 block that one of the 90 tiles can.

    Raises:
        MaskError: R is not a multiple of four.
    """
    _check_rows(len(scores_RK))
    tiles = transposable_tiles(scores_RK.device)
    blocks = scores_RK.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2)
    kept = blocks.flatten(2) @ tiles.flatten(1).to(scores_RK.dtype).T
    return _untile(tiles[kept.argmax(-1)])


@MASKS.register("tile")
def tile_mask(source: WeightSource) -> Mask:
    """The transposable tile with rows 1100, 1100, 0011, 0011, everywhere."""
    _check_rows(source.N)
    six = _six(source.device)
    return TiledMask(six[[0, 0, 5, 5]], source.N, source.K)


@MASKS.register("tile_random")
def tile_random_mask(source: WeightSource) -> Mask:
    """One of the 90 transposable tiles drawn uniformly for each 4 × 4 block, from the source's seed."""
    _check_rows(source.N)
    groups, device = source.K // 4, source.device

    def block(index: int, rows: int) -> torch.Tensor:
        stream = generator(device, source.seed, 2, index)
        draws = torch.randint(90, (rows // 4, groups), device=device, generator=stream)
        return _untile(transposable_tiles(device)[draws])

    return LazyMask(source.N, source.K, lambda start, stop: seeded_rows(start, stop, source.N, block))


@MASKS.register("tile_magnitude")
def tile_magnitude_mask(source: WeightSource) -> Mask:
    """Of the 90 transposable tiles the one that keeps the largest sum of |w|, for each 4 × 4 block."""
    _check_rows(source.N)

    def make(start: int, stop: int) -> torch.Tensor:
        first, last = start // 4 * 4, -(-stop // 4) * 4
        return best_tiles(source.rows(first, last).abs().float())[start - first : stop - first]

    return LazyMask(source.N, source.K, make)
