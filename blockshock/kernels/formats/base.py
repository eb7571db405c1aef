"""What a format is: how the numbers of x and of W are stored in few bits, and how a dense product is made of those.

A row of a matrix, a token of x or an output channel of W, has one scale s, such that its largest number is the largest
that the format holds; what is stored is x / s, rounded to the nearest number of the format. (s is the largest number
times 1 / that of the format: so a GPU divides by a number, and a CPU is to find the same.) A format is one file in this
folder with one class registered in FORMATS; nothing else needs to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch

from blockshock.errors import InputError
from blockshock.kernels.formats import one_pass
from blockshock.kernels.formats.orders import Order
from blockshock.measure import FLOAT32, Sums
from blockshock.registry import Registry
from blockshock.stages import stage

TINY = torch.finfo(torch.float32).tiny
"""The least scale: below it a scale would have few bits itself, and of a row of zeros there is none."""


class Stored(NamedTuple):
    """What is stored of a matrix (R, K), and the float32 scale of each of its rows: (R, 1) of x, (R,) of W."""

    numbers: torch.Tensor
    scale: torch.Tensor


class Format:
    """A way to store numbers, and to multiply by what is stored.

    Attributes:
        stored: the dtype.
        largest: number that it holds.
        dtypes: of layers that it can be picked for.
        multiple: features of x, and of y, that its dense product takes; others are filled up with zeros.
        least_tokens: rows of x that its dense product takes, likewise.
        quantises_nothing: of the one that stands for a layer's own dtype.

    Args:
        compiled: x is quantised, and sums are scaled, by what ``torch.compile`` makes of that. It divides less
            exactly, so that a number near a tie may be stored as its other neighbour. Otherwise, on a GPU, by kernels
            of our own (``one_pass.py``).
    """

    stored: ClassVar[torch.dtype]
    largest: ClassVar[float]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32)
    multiple: ClassVar[int] = 16
    least_tokens: ClassVar[int] = 1
    quantises_nothing: ClassVar[bool] = False

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled

    @property
    def name(self) -> str:
        """By which it is registered."""
        return FORMATS.name_of(type(self))

    @property
    def weights(self) -> Format:
        """How W is stored: as x is, unless this is a format of two kinds of numbers."""
        return self

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why layers of that dtype cannot be multiplied so on that device."""
        if dtype not in self.dtypes:
            return f"is for layers in {', '.join(map(str, self.dtypes))}, not {dtype}"
        return None

    def sums(self, device: torch.device) -> Sums:
        """How products of what is stored are added up there."""
        return FLOAT32

    def roundings(self, device: torch.device, biased: bool) -> int:
        """How often its dense product rounds an element of y to the dtype there."""
        return 1

    def quantise(self, rows_RK: torch.Tensor) -> Stored:
        """What is stored of a matrix (R, K), with scales (R, 1).

        A row that holds NaN or inf gets a scale that is not finite, and so do all products with it.
        """
        return self.quantise_in(rows_RK, Order.ROWS)

    def quantise_in(self, rows_RK: torch.Tensor, order: Order) -> Stored:
        """The same, with numbers that lie in an order."""
        if self.compiled:
            numbers, scale_R1 = compiled(_quantised)(rows_RK, self.largest, self.stored)
            return Stored(order.of(numbers), scale_R1)
        if order is not Order.ROWS and torch.compiler.is_compiling():
            return Stored(*_traced(rows_RK, self.largest, self.stored, order.value))
        return Stored(*_quantised_in(rows_RK, self.largest, self.stored, order))

    def scales(self, rows_RK: torch.Tensor) -> torch.Tensor:
        """Those of the rows, float32 (R, 1). Of rows that several hold parts of, the largest of what the parts have."""
        return _scales(rows_RK, self.largest)

    def stored_by(self, rows_RK: torch.Tensor, scale_R1: torch.Tensor) -> torch.Tensor:
        """What is stored of a matrix (R, K), or of some of its columns, by scales that are known."""
        return _stored(rows_RK, scale_R1, self.stored)

    def represented(self, rows_RK: torch.Tensor) -> torch.Tensor:
        """What ``quantise`` stands for, in float64, exactly: by the definition, and by nothing that ``quantise`` uses.

        The quotient is float32's, as there: another one would fall to the other side of some ties.
        """
        scale_R1 = (rows_RK.float().abs().max(dim=1, keepdim=True).values * (1 / self.largest)).clamp(min=TINY)
        return self.nearest((rows_RK.float() / scale_R1).double()) * scale_R1.double()

    def nearest(self, scaled_RK: torch.Tensor) -> torch.Tensor:
        """Of numbers between ± ``largest``, float64, the nearest that the format has; of two as near the even one."""
        raise NotImplementedError

    def product(self, q_BK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        """The bare product of what is stored, which is what the device can do at most: without scales, or by ones."""
        raise NotImplementedError

    def descale(
        self,
        sums_BN: torch.Tensor,
        scale_B1: torch.Tensor,
        scale_N: torch.Tensor | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """``descaled``, as the stage ``dequantise``."""
        with stage("dequantise"):
            run = compiled(descaled) if self.compiled else descaled
            if not self.compiled and one_pass.scales(sums_BN, scale_N, bias, dtype):
                run = one_pass.descaled
            return run(sums_BN, scale_B1, scale_N, bias, dtype)

    def multiply(self, x: Stored, w: Stored, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """The dense product (B, N) in a dtype of what is stored of x and of W.

        Stages ``matmul`` and ``dequantise``. Numbers lie densely, filled up to sizes that it takes; scales are not.
        """
        raise NotImplementedError


def _quantised_in(
    rows_RK: torch.Tensor, largest: float, stored: torch.dtype, order: Order
) -> tuple[torch.Tensor, torch.Tensor]:
    if one_pass.quantises(rows_RK, stored):
        return one_pass.quantised(rows_RK, largest, stored, order)
    numbers, scale_R1 = _quantised(rows_RK, largest, stored)
    return order.of(numbers), scale_R1


@torch.library.custom_op(
    "blockshock::quantised",
    mutates_args=(),
    schema="(Tensor rows, float largest, ScalarType stored, int order) -> (Tensor, Tensor)",
)
def _traced(rows: torch.Tensor, largest: float, stored: torch.dtype, order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in compiled code: to what compiles it, numbers that do not lie in rows are gathered one by one."""
    return _quantised_in(rows, largest, stored, Order(order))


@_traced.register_fake
def _(rows: torch.Tensor, largest: float, stored: torch.dtype, order: int) -> tuple[torch.Tensor, torch.Tensor]:
    R, K = rows.shape
    return rows.new_empty(Order(order).shape(R, K), dtype=stored), rows.new_empty(R, 1, dtype=torch.float32)


def _quantised(rows_RK: torch.Tensor, largest: float, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale_R1 = _scales(rows_RK, largest)
    return _stored(rows_RK, scale_R1, stored), scale_R1


def _scales(rows_RK: torch.Tensor, largest: float) -> torch.Tensor:
    scale_R1 = torch.linalg.vector_norm(rows_RK, math.inf, 1, True, dtype=torch.float32) * (1 / largest)
    return scale_R1.clamp(min=TINY)


def _stored(rows_RK: torch.Tensor, scale_R1: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    # Nothing goes beyond the largest number by more than its quotient is rounded: that then rounds back to it.
    scaled_RK = rows_RK / scale_R1
    return (scaled_RK if stored.is_floating_point else scaled_RK.round()).to(stored)


def descaled(
    sums_BN: torch.Tensor,
    scale_B1: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Sums of products of what is stored, times both scales, plus the bias: in float32, rounded to the dtype once.

    That of W's channel comes first: no sum times it overflows, as was seen when W was packed; what overflows then is y.

    Args:
        scale_N: None where the sums have it already.
    """
    y_BN = torch.empty(sums_BN.shape, dtype=dtype, device=sums_BN.device)
    scaled_BN = sums_BN if scale_N is None else sums_BN * scale_N
    if bias is None:
        return torch.mul(scaled_BN, scale_B1, out=y_BN)
    return torch.addcmul(bias, scaled_BN, scale_B1, out=y_BN)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.compile`` makes of a function, for all that call it."""
    return torch.compile(function)


FORMATS: Registry[type[Format]] = Registry("format")


def build_format(spec: str) -> Format | None:
    """The format that a spec names; None for ``plain``, the numbers of a layer's own dtype.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter.
    """
    kind: type[Any]
    kind, parameters = FORMATS.resolve(spec)
    return None if kind.quantises_nothing else kind(**parameters)


def format_of(stored: torch.dtype) -> Format:
    """The format that stores x and W in a dtype. Raises InputError where none does."""
    kinds = [FORMATS.get(name) for name in FORMATS.names()]
    for format in [kind() for kind in kinds if not kind.quantises_nothing]:
        if format.stored == format.weights.stored == stored:
            return format
    raise InputError(f"no format stores {stored}: {', '.join(FORMATS.names())} are known")
