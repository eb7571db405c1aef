"""How large a layer can be, and that its K can be cut into groups of four."""

from __future__ import annotations

from blockshock.errors import InputError

MOST_FEATURES = 2**31 - 1
"""N·K of such a layer still fits into the 63 bits that torch counts elements by."""


def check_size(N: int, K: int) -> None:
    """Raises InputError unless N and K are positive and not beyond what torch can count."""
    if N <= 0 or K <= 0:
        raise InputError(f"N and K must be positive, got N = {N}, K = {K}")
    if max(N, K) > MOST_FEATURES:
        raise InputError(f"N and K must be at most {MOST_FEATURES}, which 32 bits hold; got N = {N}, K = {K}")


def check_shape(N: int, K: int) -> None:
    """The same, and that K is a multiple of four."""
    check_size(N, K)
    if K % 4:
        nearest = f"nearest are {K - K % 4} and {K - K % 4 + 4}" if K > 4 else "smallest is 4"
        raise InputError(f"K must be a multiple of 4 for 2:4 groups, got K = {K}; the {nearest}")


LEAST_DRAWN, LARGEST_DRAWN = 1e-37, 1e37
"""Of what inputs are drawn with: float32, in which they are, holds a few times as much, and a tenth of the least."""
