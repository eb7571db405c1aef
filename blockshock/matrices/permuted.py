"""Columns in another order: W, and masks that are 2:4 only once the input channels are permuted."""

from __future__ import annotations

import torch

from blockshock.errors import InputError
from blockshock.matrices.masks import Mask
from blockshock.matrices.weights import WeightSource


def check_permutation(order_K: torch.Tensor, K: int) -> None:
    """Raises InputError unless this holds each of 0 … K - 1 once, as int64 (K,)."""
    if order_K.dtype != torch.int64 or tuple(order_K.shape) != (K,):
        raise InputError(f"a permutation of {K} channels is int64 ({K},), got {order_K.dtype} {tuple(order_K.shape)}")
    if not torch.equal(order_K.sort().values, torch.arange(K, device=order_K.device)):
        raise InputError(f"not a permutation: it does not hold each of 0 … {K - 1} once")


def inverse(order_K: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes another."""
    return torch.empty_like(order_K).scatter_(0, order_K, torch.arange(len(order_K), device=order_K.device))


class PermutedWeights(WeightSource):
    """The columns of another source in another order: column k is its column ``order_K[k]``."""

    def __init__(self, source: WeightSource, order_K: torch.Tensor) -> None:
        super().__init__(source.N, source.K, source.dtype, source.device, source.seed, source.bias)
        check_permutation(order_K, source.K)
        self._source, self._order_K = source, order_K

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._source.rows(start, stop).index_select(1, self._order_K)


class PermutedMask(Mask):
    """A mask in W's own order of columns, which is 2:4 in another.

    Args:
        ordered: the 2:4 one, whose column k is column ``permutation[k]`` of this.
    """

    def __init__(self, ordered: Mask, permutation: torch.Tensor) -> None:
        super().__init__(ordered.N, ordered.K)
        check_permutation(permutation, ordered.K)
        self.permutation, self._ordered, self._inverse = permutation, ordered, inverse(permutation)

    @property
    def ordered(self) -> Mask:
        return self._ordered

    @property
    def watched(self) -> tuple[torch.Tensor, int] | None:
        return self._ordered.watched

    def check_unchanged(self) -> None:
        self._ordered.check_unchanged()

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        rows_RK = self._ordered.rows(start, stop)
        return rows_RK.index_select(1, self._inverse.to(rows_RK.device))


def in_own_order(weights: WeightSource, permutation: torch.Tensor | None) -> WeightSource:
    """W′ whose columns were permuted so, and its mask, in W's own order again; None: it is in that."""
    if permutation is None:
        return weights
    found = PermutedWeights(weights, inverse(permutation))
    found.mask = None if weights.mask is None else PermutedMask(weights.mask, permutation)
    return found
