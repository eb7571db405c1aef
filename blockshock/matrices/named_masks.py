"""The named masks of the suite: fixed patterns, random, by magnitude, and the transposable tiles.

A builder takes a weight source and returns the mask of the first half; the second half is its complement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import torch

from blockshock.errors import MaskError
from blockshock.matrices.blocks_of_rows import SeededRows, generator
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

    return LazyMask(source.N, source.K, SeededRows(source.N, block).rows)


@MASKS.register("magnitude")
def magnitude_mask(source: WeightSource) -> Mask:
    """The two largest |w| of each four; among equals the first stay (Mishra et al., arXiv 2104.08378, 2021)."""

    return LazyMask(source.N, source.K, lambda start, stop: two_largest(source.rows(start, stop).abs()))


def two_largest(scores: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The mask, of the shape of the scores, of the two largest of each four along ``dim``; among equals the first stay.

    Of finite or infinite scores: with NaN among them a group may keep more or less than two.
    """
    dim %= scores.ndim
    scores_4 = scores.unflatten(dim, (-1, 4)).movedim(dim + 1, 0)
    (i, j), *others = _PAIRS
    wins = (scores_4[i] >= scores_4[j]).byte()
    for bit, (i, j) in enumerate(others, 1):
        wins.add_(scores_4[i] >= scores_4[j], alpha=1 << bit)
    kept_4 = torch.take(_kept_by_wins(scores.device), wins.long())[..., None].view(torch.bool)
    return kept_4.movedim(-1, dim + 1).flatten(dim, dim + 1)


_PAIRS = tuple(itertools.combinations(range(4), 2))


@cache
def _kept_by_wins(device: torch.device) -> torch.Tensor:
    """Of each outcome of the six comparisons of four, a bit each where the first wins, which two stay: those that less
    than two others beat. Four bytes of a mask as int32 (64,)."""
    wins = torch.arange(64)[:, None] >> torch.arange(6) & 1
    beaten = torch.zeros(64, 4, dtype=torch.int64)
    for first_wins, (i, j) in zip(wins.T, _PAIRS, strict=True):
        beaten[:, j] += first_wins
        beaten[:, i] += 1 - first_wins
    return (beaten < 2).view(torch.int32).flatten().to(device)


@cache
def transposable_tiles(device: torch.device) -> torch.Tensor:
    """The 90 boolean 4 × 4 tiles with two kept in every row and every column, as (90, 4, 4).

    Source: Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021. The complement of each is among them.
    """
    rows = _six(torch.device("cpu"))
    tiles = [rows[list(choice)] for choice in itertools.product(range(6), repeat=4)]
    return torch.stack([tile for tile in tiles if (tile.sum(0) == 2).all()]).to(device)


@cache
def _columns_of_tiles(device: torch.device) -> torch.Tensor:
    """The same as columns of float64, (16, 90)."""
    return transposable_tiles(device).flatten(1).T.double()


def _check_rows(N: int) -> None:
    if N % 4:
        raise MaskError(f"a transposable mask needs N to be a multiple of 4, got N = {N}")


def untile(tiles_RG44: torch.Tensor) -> torch.Tensor:
    """The matrix (4 R, 4 G) that 4 × 4 tiles lie side by side in."""
    return tiles_RG44.transpose(1, 2).flatten(2).flatten(0, 1)


def best_tiles(scores_RK: torch.Tensor) -> torch.Tensor:
    """The mask (R, K) that keeps the largest sum of scores of each 4 × 4 block that one of the 90 tiles can.

    Exact: sums are compared as the real numbers that they are, whatever the order in which a device adds. Of tiles
    with equal sums the first stays, in the order of ``transposable_tiles``: the first row decides, then the second,
    1100 before 1010, 1001, 0110, 0101 and 0011.

    Args:
        scores_RK: at least 0; NaN and inf count as the largest number of the dtype.

    Raises:
        MaskError: R is not a multiple of four.
    """
    _check_rows(len(scores_RK))
    tiles, info = transposable_tiles(scores_RK.device), torch.finfo(scores_RK.dtype)
    in_tiles = scores_RK.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2)
    rest = in_tiles.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    rest_TE = rest.flatten(2).flatten(0, 1).nan_to_num_(nan=info.max, posinf=info.max)
    exponent_T1 = torch.frexp(rest_TE.amax(-1, keepdim=True)).exponent
    best_T = _largest_sums(rest_TE, exponent_T1, _columns_of_tiles(rest.device), None, _passes(scores_RK.dtype))
    return untile(tiles[best_T.view(in_tiles.shape[:2])])


_DIGITS = 48
"""Binary digits that are added up at once: sums of eight such, on top of what is left of those before, are exact in
float64 whatever the order."""
_BEHIND = 8.0
"""Units of the last of those digits: what is so far behind is not caught up by eight numbers below one unit."""
_LEAST_EXPONENT = -1074
"""Of a float64."""


def _largest_sums(
    rest_TE: torch.Tensor,
    exponent_T1: torch.Tensor,
    digits_EP: torch.Tensor,
    behind_TP: torch.Tensor | None,
    passes: int,
) -> torch.Tensor:
    """Of each tile's 16 scores the pattern, of 90, with the largest sum: by leading digits, then by those that follow.

    Args:
        rest_TE: what of the scores was not seen yet, below 2 to the exponent; written over.
        behind_TP: by how much each pattern is behind the best, in units of 2 to the exponent.
        passes: in which all digits are seen.
    """
    unit_T1 = torch.exp2((exponent_T1 - _DIGITS).clamp(min=_LEAST_EXPONENT).double())
    leading_TE = (rest_TE / unit_T1).floor_()
    rest_TE.addcmul_(leading_TE, unit_T1, value=-1)
    sums_TP = leading_TE @ digits_EP
    del leading_TE
    if behind_TP is not None:
        sums_TP += behind_TP.clamp_(min=-2 * _BEHIND) * (torch.exp2(exponent_T1.double()) / unit_T1)
    best_T = sums_TP.argmax(-1)
    if passes == 1:
        return best_T
    sums_TP -= sums_TP.amax(-1, keepdim=True)
    following = torch.frexp(unit_T1).exponent - 1
    if _in_a_graph(rest_TE):
        return _largest_sums(rest_TE, following, digits_EP, sums_TP, passes - 1)
    # Counting those that are near would make 90 whole numbers of each tile.
    sums_TP.scatter_(-1, best_T[:, None], -math.inf)
    is_open = rest_TE.any(-1) & (sums_TP.amax(-1) > -_BEHIND)
    sums_TP.scatter_(-1, best_T[:, None], 0.0)
    open_T = is_open.nonzero()[:, 0]
    if len(open_T):
        left = rest_TE[open_T], following[open_T], digits_EP, sums_TP[open_T], passes - 1
        best_T[open_T] = _largest_sums(*left)
    return best_T


def _passes(dtype: torch.dtype) -> int:
    """In which all digits of all numbers of a dtype are seen."""
    info = torch.finfo(dtype)
    least = math.frexp(info.smallest_normal * info.eps)[1]
    return -(-(math.frexp(info.max)[1] - least + 1) // _DIGITS)


def _in_a_graph(tensor: torch.Tensor) -> bool:
    """Whether nothing can be asked of a tensor's values, for they are not known yet."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


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
        return untile(transposable_tiles(device)[draws])

    return LazyMask(source.N, source.K, SeededRows(source.N, block).rows)


@MASKS.register("tile_magnitude")
def tile_magnitude_mask(source: WeightSource) -> Mask:
    """Of the 90 transposable tiles the one that keeps the largest sum of |w|, for each 4 × 4 block."""
    _check_rows(source.N)

    def make(start: int, stop: int) -> torch.Tensor:
        first, last = start // 4 * 4, -(-stop // 4) * 4
        return best_tiles(source.rows(first, last).abs())[start - first : stop - first]

    return LazyMask(source.N, source.K, make)
