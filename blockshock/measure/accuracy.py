"""Errors against the float64 reference, and what passes.

The reference is computed in float64 from the same rounded W, X and bias. A result passes when

- its relative Frobenius error is at most twice that of the dense product on one device in the same dtype, and
- each element lies within the forward error bound of its arithmetic,
  |ŷ − y| ≤ (r·u + K·u₃₂) (|X||W|ᵀ + |b|) + r·η/2,
  where u is the unit roundoff of the dtype, r the number of roundings to it that an element meets (the partial sums
  are rounded once, each addition of one of them once), and u₃₂ that of the float32 accumulation over K (Higham,
  Accuracy and Stability of Numerical Algorithms, 2002, §3.1). Near zero a rounding is off by half of η, the smallest
  number of the dtype.

Four things make the error of the dense product an unfair yardstick, and are allowed for:

- In float32 the order of summation decides, and kernels differ in it. The yardstick is at least u·√(K/6): the
  root-mean-square error of summing K independent terms one after the other (each of K steps rounds a partial sum that
  grows as √k, by a uniform error of variance u²/3; Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
- Of few elements it may be near zero by chance, and any other error infinitely larger. In other dtypes than float32 the
  yardstick is at least u·√(1/7): the root mean square of rounding numbers whose significands m are uniform in [1, 2),
  by a uniform error of variance u²/3 beside a mean m² of 7/3.
- Independent roundings add in squares. Twice the yardstick leaves room for two partial sums of the size that
  uncorrelated ones have, ‖p₀‖² + ‖p₁‖² = ‖y‖²; for r partial sums, and for such as cancel, the limit is
  2·√(r/2)·√((Σ‖p‖² + ‖y‖²) / 2‖y‖²), never below 2. Σ‖p‖² is measured in float64, for partial sums over
  contiguous parts of K and over alternating pairs of columns, whichever cancel more.
- The norm of a few large elements is a matter of chance. Its standard deviation falls as 1/√n with the effective number
  of elements n = (Σy²)²/Σy⁴, and two of them are allowed: the limit is multiplied by 1 + 2/√n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from blockshock.matrices import WeightSource, row_blocks
from blockshock.measure.exact import Beside, Exact


@dataclass
class ErrorSums:
    """Sums over the output features that one rank checked; they add up to the whole."""

    count: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    dense_squared: float = 0.0
    reference_squared: float = 0.0
    contiguous_squared: float = 0.0
    alternating_squared: float = 0.0
    reference_fourth: float = 0.0
    largest: float = 0.0
    of_bound: float = 0.0
    least_dense_error: float = 0.0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        for name in ("largest", "of_bound", "least_dense_error"):
            sums[name] = max(getattr(self, name), getattr(other, name))
        return ErrorSums(**sums)


@dataclass(frozen=True)
class Accuracy:
    """Error of an output against float64.

    Attributes:
        max_error, mean_error: of single elements, absolute.
        relative_error: Frobenius norm of the error over that of the reference.
        dense_relative_error: the same of the dense product on one device.
        error_ratio: relative_error over dense_relative_error, the yardstick.
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
        """From the sums over all ranks' shares; roundings is r of the method."""
        relative = math.sqrt(ratio(sums.squared, sums.reference_squared))
        dense = max(math.sqrt(ratio(sums.dense_squared, sums.reference_squared)), sums.least_dense_error)
        partial_sums = max(sums.contiguous_squared, sums.alternating_squared)
        cancellation = (partial_sums + sums.reference_squared) / (2 * sums.reference_squared or 1.0)
        elements = sums.reference_squared**2 / sums.reference_fourth if sums.reference_fourth else math.inf
        limit = (
            2.0 * math.sqrt(max(roundings, 2) / 2) * math.sqrt(max(cancellation, 1.0)) * (1 + 2 / math.sqrt(elements))
        )
        return cls(
            max_error=sums.largest,
            mean_error=sums.absolute / sums.count,
            relative_error=relative,
            dense_relative_error=dense,
            error_ratio=1.0 if relative == dense else relative / dense if dense else math.inf,
            error_ratio_limit=limit,
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


@dataclass(frozen=True)
class Sums:
    """How a product adds up over K.

    Attributes:
        roundoff: of an addition, relative to its largest term.
        at_once: products that one addition takes in.
        truncates: what is too small for it is cut off; otherwise it is rounded.
    """

    roundoff: float = 2.0**-24
    at_once: int = 1
    truncates: bool = False

    def bound(self, K: int) -> float:
        """At most that much of Σ|x||w| is lost: each product may be cut, and so may the sum at each addition."""
        return K * self.roundoff * (1 + 1 / self.at_once if self.truncates else 1)

    def error(self, K: int) -> float:
        """Of independent terms about that much of the norm of y, where additions truncate (docs/theory.md)."""
        steps = K / self.at_once
        return self.roundoff * (steps / 4 + math.sqrt(steps)) if self.truncates else 0.0


FLOAT32 = Sums()


def ratio(part: float, whole: float) -> float:
    """Part of a whole; of nothing nothing is 0, and anything else infinitely much."""
    if whole == 0.0:
        return 0.0 if part == 0.0 else math.inf
    return part / whole


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def smallest(dtype: torch.dtype) -> float:
    """The smallest number above 0: how far apart numbers near 0 are."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal * limits.eps


def share(source: WeightSource, index: int, count: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of every ``count``-th block of output features from the ``index``-th on: a rank's to check."""
    blocks = enumerate(row_blocks(source.N, source.K * 8, block_bytes=256 << 20))
    return (block for number, block in blocks if number % count == index)


def compare(
    y_BN: torch.Tensor,
    x_BK: torch.Tensor,
    source: WeightSource,
    roundings: int,
    index: int,
    count: int,
    sums_of_product: Sums = FLOAT32,
    beside: Sequence[Beside] = (),
) -> ErrorSums:
    """Errors of y against float64, over a ``share`` of the output features.

    Args:
        x_BK: in the dtype of the source, which may hold more than that of y: the dense product is rounded to y's.
        roundings: r of the bound.
        beside: are given each block of that share.
    """
    x64_BK = x_BK.double()
    u = unit_roundoff(y_BN.dtype)
    rounding = roundings * u + sums_of_product.bound(source.K)
    least_dense_error = u * math.sqrt(source.K / 6 if y_BN.dtype == torch.float32 else 1 / 7)
    least_dense_error = max(least_dense_error, sums_of_product.error(source.K))
    found = []
    for start, stop in share(source, index, count):
        w_RK = source.rows(start, stop)
        bias_R = None if source.bias is None else source.bias[start:stop]
        dense_BR = F.linear(x_BK, w_RK, bias_R).to(y_BN.dtype).double()
        w64_RK = w_RK.double()
        exact_BR, bound_BR = x64_BK @ w64_RK.T, x64_BK.abs() @ w64_RK.abs().T
        for other in beside:
            other.add(start, stop, Exact(source, x_BK, w64_RK, exact_BR))
        if bias_R is not None:
            exact_BR, bound_BR = exact_BR + bias_R.double(), bound_BR + bias_R.double().abs()
        error_BR = (y_BN[:, start:stop].double() - exact_BR).abs()
        # An element whose bound is zero must be exact: 0/0 counts as within, x/0 as infinitely far.
        bound_BR = torch.where(bound_BR == 0, 0.0, bound_BR * rounding + roundings * smallest(y_BN.dtype) / 2)
        of_bound = torch.where(error_BR == 0, 0.0, error_BR / bound_BR)
        contiguous, alternating = _partial_sums_squared(x64_BK, w64_RK, exact_BR, roundings)
        of_block = {
            "absolute": error_BR.sum(),
            "squared": error_BR.square().sum(),
            "dense_squared": (dense_BR - exact_BR).square().sum(),
            "reference_squared": exact_BR.square().sum(),
            "alternating_squared": alternating,
            "reference_fourth": exact_BR.square().square().sum(),
            "largest": error_BR.max(),
            "of_bound": of_bound.max(),
        }
        found.append((error_BR.numel(), list(of_block), torch.stack([*of_block.values(), *contiguous])))
    sums = ErrorSums()
    for elements, names, values in found:  # once all of them are launched
        numbers = values.tolist()
        of_values, parts = dict(zip(names, numbers, strict=False)), numbers[len(names) :]
        sums += ErrorSums(elements, least_dense_error=least_dense_error, contiguous_squared=sum(parts), **of_values)
    return sums


def _partial_sums_squared(
    x_BK: torch.Tensor, w_RK: torch.Tensor, y_BR: torch.Tensor, parts: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """‖p‖² of each partial sum over contiguous parts of K, and Σ‖p‖² over the alternating pairs of columns that 1100
    keeps."""
    if parts == 1:
        return [], y_BR.new_zeros(())
    chunks = zip(x_BK.chunk(parts, dim=1), w_RK.chunk(parts, dim=1), strict=True)
    contiguous = [(x @ w.T).square().sum() for x, w in chunks]
    pairs = x_BK.unflatten(1, (-1, 4))[..., :2].flatten(1) @ w_RK.unflatten(1, (-1, 4))[..., :2].flatten(1).T
    return contiguous, pairs.square().sum() + (y_BR - pairs).square().sum()
