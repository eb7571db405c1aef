"""Errors against the float64 reference, and what passes.

The reference is computed in float64 from the same rounded W, X and bias. A result passes when

- its relative Frobenius error is at most twice that of the dense product on one device in the same dtype (in float32,
  where the order of summation decides, the worse of two orders: K as a whole, and in halves), for up to two partial
  sums; independent roundings add in squares, so that r partial sums may reach 2·√(r/2) times; and
- each element lies within the forward error bound of its arithmetic,
  |ŷ − y| ≤ (r·u + K·u₃₂) (|X||W|ᵀ + |b|),
  where u is the unit roundoff of the dtype, r the number of roundings to it that an element meets (the partial sums
  are rounded once, each addition of one of them once), and u₃₂ that of the float32 accumulation over K (Higham,
  Accuracy and Stability of Numerical Algorithms, 2002, §3.1).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from blockshock.blocks import row_blocks
from blockshock.weights import WeightSource


def error_ratio_limit(roundings: int) -> float:
    """How many times the dense product's error passes, for that many roundings of an element."""
    return 2.0 * math.sqrt(max(roundings, 2) / 2)


@dataclass
class ErrorSums:
    """Sums over the output features that one rank checked; they add up to the whole."""

    count: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    dense_squared: float = 0.0
    halves_squared: float = 0.0
    reference_squared: float = 0.0
    largest: float = 0.0
    of_bound: float = 0.0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        for name in ("largest", "of_bound"):
            sums[name] = max(getattr(self, name), getattr(other, name))
        return ErrorSums(**sums)


@dataclass(frozen=True)
class Accuracy:
    """Error of an output against float64.

    Attributes:
        max_error, mean_error: of single elements, absolute.
        relative_error: Frobenius norm of the error over that of the reference.
        dense_relative_error: the same of the dense product on one device.
        error_ratio: relative_error over dense_relative_error.
        error_ratio_limit: what of that passes.
        of_bound: the largest error of an element as a fraction of its forward error bound.
    """

    max_error: float
    mean_error: float
    relative_error: float
    dense_relative_error: float
    error_ratio: float
    error_ratio_limit: float
    of_bound: float

    @classmethod
    def of(cls, sums: ErrorSums, roundings: int) -> Accuracy:
        relative = _root_ratio(sums.squared, sums.reference_squared)
        dense = _root_ratio(max(sums.dense_squared, sums.halves_squared), sums.reference_squared)
        return cls(
            max_error=sums.largest,
            mean_error=sums.absolute / sums.count,
            relative_error=relative,
            dense_relative_error=dense,
            error_ratio=1.0 if relative == dense else relative / dense if dense else math.inf,
            error_ratio_limit=error_ratio_limit(roundings),
            of_bound=sums.of_bound,
        )

    def failure(self) -> str | None:
        """None if the result passes, else a sentence that says what it missed and by how much."""
        # Written so that NaN fails.
        if not self.error_ratio <= self.error_ratio_limit:
            return (
                f"relative error {self.relative_error:.3g} is {self.error_ratio:.3g} times the dense product's "
                f"{self.dense_relative_error:.3g}; at most {self.error_ratio_limit:.3g} times passes"
            )
        if not self.of_bound <= 1.0:
            return f"an element is off by {self.of_bound:.3g} times its forward error bound"
        return None


def _root_ratio(part: float, whole: float) -> float:
    if whole == 0.0:
        return 0.0 if part == 0.0 else math.inf
    return math.sqrt(part / whole)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def compare(
    y_BN: torch.Tensor, x_BK: torch.Tensor, source: WeightSource, roundings: int, index: int, count: int
) -> ErrorSums:
    """Errors of y against float64, over every ``count``-th block of output features from the ``index``-th on.

    Args:
        roundings: r of the bound.
    """
    x64_BK = x_BK.double()
    rounding = roundings * unit_roundoff(y_BN.dtype) + source.K * unit_roundoff(torch.float32)
    sums = ErrorSums()
    for number, (start, stop) in enumerate(row_blocks(source.N, source.K * 8, block_bytes=256 << 20)):
        if number % count != index:
            continue
        w_RK = source.rows(start, stop)
        bias_R = None if source.bias is None else source.bias[start:stop]
        dense_BR, halves_BR = _dense_products(x_BK, w_RK, bias_R)
        w64_RK = w_RK.double()
        exact_BR, bound_BR = x64_BK @ w64_RK.T, x64_BK.abs() @ w64_RK.abs().T
        if bias_R is not None:
            exact_BR, bound_BR = exact_BR + bias_R.double(), bound_BR + bias_R.double().abs()
        error_BR = (y_BN[:, start:stop].double() - exact_BR).abs()
        # An element whose bound is zero must be exact: 0/0 counts as within, x/0 as infinitely far.
        of_bound = torch.where(error_BR == 0, 0.0, error_BR / (bound_BR * rounding))
        sums += ErrorSums(
            count=error_BR.numel(),
            absolute=error_BR.sum().item(),
            squared=error_BR.square().sum().item(),
            dense_squared=(dense_BR.double() - exact_BR).square().sum().item(),
            halves_squared=(halves_BR.double() - exact_BR).square().sum().item(),
            reference_squared=exact_BR.square().sum().item(),
            largest=error_BR.max().item(),
            of_bound=of_bound.max().item(),
        )
    return sums


def _dense_products(
    x_BK: torch.Tensor, w_RK: torch.Tensor, bias_R: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product as one call, and in float32 also as the sum of two over half of K each."""
    whole = F.linear(x_BK, w_RK, bias_R)
    if x_BK.dtype != torch.float32:
        return whole, whole
    half = x_BK.shape[1] // 2
    return whole, F.linear(x_BK[:, :half], w_RK[:, :half], bias_R) + F.linear(x_BK[:, half:], w_RK[:, half:])
