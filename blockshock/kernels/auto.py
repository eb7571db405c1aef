"""The fastest kernel for a shape, a mask and a device, found by measuring each candidate that multiplies right.

Each is measured once for a machine: what it took is remembered in the user's cache folder, and ranks decide by the
seconds of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blockshock.errors import KernelUnavailable
from blockshock.kernels.algorithm_cache import AlgorithmCache, are_seconds, measured_on
from blockshock.kernels.base import KERNELS, Agree, Kernel, build_kernel
from blockshock.kernels.formats import Format, QuantisedWeights
from blockshock.kernels.packed import Packed
from blockshock.matrices import Mask, Piece, PieceWeights, TransposedWeights, WeightSource, generator
from blockshock.measure import Accuracy, compare, timing

MOST_ROWS = 64
"""Of a product that are compared with the dense one, in float64."""


_measured = AlgorithmCache("auto", fits=are_seconds)


@KERNELS.register("auto")
class Auto(Kernel):
    """Whichever available kernel is fastest; measured once on a machine for each shape, mask, dtype and device.

    Args:
        search: as of ``cusparselt``.
    """

    training_mask = "1100"

    def __init__(self, search: bool = True) -> None:
        self.search = search

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self._specs(device, dtype):
            return None
        return f"no sparse kernel can run {dtype} on {device.type}: `python -m blockshock doctor` says why"

    def unsuitable(self, N: int, K: int, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
        return None

    def _specs(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Kernels that hold a compressed piece here; those that only exist to be right come last."""
        names = [name for name in KERNELS.names() if KERNELS.get(name).sparse and KERNELS.get(name) is not Auto]
        specs = [f"{name}:search=no" if name == "cusparselt" and not self.search else name for name in names]
        available = [spec for spec in specs if build_kernel(spec).unavailable(device, dtype) is None]
        return sorted(available, key=lambda spec: not build_kernel(spec).contender)

    def _candidates(self, piece: Piece, tokens: int) -> list[str]:
        kernels = {spec: build_kernel(spec) for spec in self._specs(piece.device, piece.dtype)}
        fit = [
            spec
            for spec, kernel in kernels.items()
            if not (kernel.without_format() or kernel.unsuitable(piece.N, piece.K, piece.dtype, piece.mask))
            and kernel.takes(tokens)
        ]
        if not fit:
            raise KernelUnavailable(
                f"no sparse kernel takes N = {piece.N}, K = {piece.K}, {piece.dtype} on {piece.device}"
            )
        contenders = [spec for spec in fit if kernels[spec].contender]
        return contenders or fit[:1]

    def resolve_format(self, piece: Piece, tokens: int, format: Format, agree: Agree) -> Kernel:
        size = piece.N, piece.K, piece.dtype
        kernels = {spec: build_kernel(spec) for spec in self._specs(piece.device, piece.dtype)}
        fit = [
            spec
            for spec, kernel in kernels.items()
            if not (kernel.unsuitable(*size, piece.mask) or kernel.unsuitable_format(format, *size))
            and kernel.takes(tokens)
        ]
        if not fit:
            raise KernelUnavailable(
                f"no sparse kernel takes N = {piece.N}, K = {piece.K}, {piece.dtype} as {format.name} on {piece.device}"
            )
        candidates = [spec for spec in fit if kernels[spec].contender] or fit[:1]

        def measure() -> list[float]:
            own = QuantisedWeights(PieceWeights(piece), format)
            return [_seconds_in(format, build_kernel(spec), piece, own, tokens) for spec in candidates]

        return self._ranked(candidates, f"{shape_of(piece, tokens)} {format.name}", piece, measure, agree)[0]

    def unsuitable_format(self, format: Format, N: int, K: int, dtype: torch.dtype) -> str | None:
        return None if _of_format(format) else super().unsuitable_format(format, N, K, dtype)

    def quantised_bytes(self, N: int, K: int, format: Format, mask: Mask | None = None) -> tuple[int, int]:
        found = [kernel.quantised_bytes(N, K, format, mask) for kernel in _of_format(format)]
        return max(held for held, _ in found), max(building for _, building in found)

    def ranked(self, piece: Piece, tokens: int, backward: bool, agree: Agree) -> list[Kernel]:
        candidates = self._candidates(piece, tokens)

        def measure() -> list[float]:
            right = PieceWeights(piece)
            return [_seconds(build_kernel(spec), piece, right, tokens, backward) for spec in candidates]

        return self._ranked(candidates, f"{shape_of(piece, tokens)} backward={backward}", piece, measure, agree)

    def _ranked(
        self, candidates: list[str], what: str, piece: Piece, measure: Callable[[], list[float]], agree: Agree
    ) -> list[Kernel]:
        """Of kernels that take what is asked for, which ``what`` names, in the order that ranks agree on."""
        if len(candidates) == 1:
            return [build_kernel(candidates[0])]
        where = measured_on(piece.device, Path(__file__).parent)
        seconds = agree(_measured.get(f"{where} {what} of {' '.join(candidates)}", measure))
        if math.isinf(min(seconds)):
            raise KernelUnavailable(f"kernel auto: none of {', '.join(candidates)} multiplies right on this device")
        right = [index for index, taken in enumerate(seconds) if not math.isinf(taken)]
        return [build_kernel(candidates[index]) for index in sorted(right, key=seconds.__getitem__)]

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return max(kernel.weight_bytes(N, K, itemsize, mask) for kernel in _contenders())

    def build_bytes(self, N: int, K: int, itemsize: int) -> int:
        return max(kernel.build_bytes(N, K, itemsize) for kernel in _contenders())

    def backward_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None) -> int:
        return max(kernel.backward_bytes(N, K, itemsize, mask) for kernel in _contenders())


def _of_format(format: Format) -> list[Kernel]:
    kinds = [KERNELS.get(name) for name in KERNELS.names()]
    return [kind() for kind in kinds if format.name in kind.formats]


def _contenders() -> list[Kernel]:
    kinds = [KERNELS.get(name) for name in KERNELS.names()]
    return [kind() for kind in kinds if kind.sparse and kind.contender and kind.plain and kind is not Auto]


def shape_of(piece: Piece, tokens: int) -> str:
    """All of a piece that decides how fast kernels multiply by it, in words."""
    tile = None if piece.kept.tile is None else str(piece.kept.tile.tolist())
    return f"N{piece.N} K{piece.K} B{tokens} {piece.dtype} tile={tile}"


def _seconds_in(format: Format, kernel: Kernel, piece: Piece, own: WeightSource, tokens: int) -> float:
    """Of a forward call in a format, x quantised too; infinitely many if it is not the product of what is stored."""
    (x_BK,) = _drawn(piece, tokens, piece.K)
    packed: Any = kernel.pack_quantised(piece, None, format)
    with torch.inference_mode():
        y_BN, exact_RK = packed(x_BK)[:MOST_ROWS], format.represented(x_BK[:MOST_ROWS])
        sums = compare(y_BN, exact_RK, own, packed.roundings, 0, 1, packed.sums)
        wrong = Accuracy.of(sums, packed.roundings).failure() if math.isfinite(sums.dense_squared) else None
        return math.inf if wrong else _median_seconds(kernel, packed, x_BK, None)


def _seconds(kernel: Kernel, piece: Piece, right: WeightSource, tokens: int, backward: bool) -> float:
    """Of one call, forward or both ways; infinitely many of a kernel whose product is not that of the piece."""
    x_BK, grad_y_BN = _drawn(piece, tokens, piece.K, piece.N)
    packed = kernel.pack(piece, backward=backward)
    wrong = _fault(packed(x_BK), x_BK, right)
    if backward:
        wrong = wrong or _fault(packed.grad_input(grad_y_BN), grad_y_BN, TransposedWeights(right))
    return math.inf if wrong else _median_seconds(kernel, packed, x_BK, grad_y_BN if backward else None)


def _drawn(piece: Piece, tokens: int, *widths: int) -> list[torch.Tensor]:
    stream = generator(piece.device, piece.source.seed, 4)
    return [torch.randn(tokens, width, device=piece.device, generator=stream).to(piece.dtype) for width in widths]


def _fault(y_BN: torch.Tensor, x_BK: torch.Tensor, right: WeightSource) -> str | None:
    """None if the first rows of a product are right, or beyond what the dtype holds; else what they miss."""
    sums = compare(y_BN[:MOST_ROWS], x_BK[:MOST_ROWS], right, roundings=1, index=0, count=1)
    return Accuracy.of(sums, roundings=1).failure() if math.isfinite(sums.dense_squared) else None


def _median_seconds(kernel: Kernel, packed: Packed, x_BK: torch.Tensor, grad_y_BN: torch.Tensor | None) -> float:
    def call() -> None:
        packed(x_BK)
        if grad_y_BN is not None:
            packed.grad_input(grad_y_BN)

    return timing.median_seconds(call, x_BK.device)
