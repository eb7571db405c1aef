"""A 2:4 matrix that torch's own functions multiply by, over the kernels of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from blockshock.errors import InputError, KernelUnavailable, MaskError
from blockshock.kernels import E5m2, Format, Kernel, Packed, build_kernel, format_of
from blockshock.matrices import Piece, WeightSource, check_2to4
from blockshock.matrices.masks import DenseMask
from blockshock.training.sparse.groups import check_dense, check_matrix, in_fours
from blockshock.training.sparse.masks import mask_24
from blockshock.training.sparse.mvue import mvue_24

_BYTES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
_ONE_WAY = (
    "eight bits go one way, without gradients, so along N multiply by another Sparse24, made of the transposed matrix "
    "(2:4 along N too if its mask is transposable); 16 bits and more go both ways"
)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, *_BYTES)


class Sparse24:
    """A matrix A (N, K), 2:4 along K, packed once and multiplied by ``mm``, ``matmul``, ``addmm`` and ``linear``.

    Those of torch, with a dense matrix on the other side: ``F.linear(x, A)``, ``x @ A.t()``, ``A @ x``, and, of one
    that is packed both ways, ``x @ A`` and ``A.t() @ x``. Gradients go to the dense side; none go to what A was made
    of. A bias is added to the product. Numbers that are kept stay as they are, zeros, NaN and inf too; what is dropped
    is zero, whatever it was.

    In eight bits A has one float32 scale a row, and the dense side one a row as it comes: the code that is published
    with FST casts numbers as they are, so that they over- and underflow. e5m2 is multiplied in float32, on any device.

    Args:
        x_NK: fp16, bf16, fp32 or fp64, however it lies; the two largest of each four are those of this dtype.
        mask: bool (N, K) of what is kept, two of each four; None for the two with the largest |x|.
        dtype: what is held: fp16, bf16, fp32, fp64, int8, float8_e4m3fn or float8_e5m2. None for that of ``x_NK``.
        both_ways: A is multiplied along N too, by the gradients of its products say. Of a kernel that cannot do that by
            one packing Aᵀ is held beside it: 2:4 where the mask is transposable, else dense. Eight bits go one way.
        kernel: of KERNELS, with its parameters. None for ``cusparselt`` on a GPU and ``reference`` elsewhere.

    Raises:
        InputError: ``x_NK`` is no matrix, K is not a multiple of four, a dtype or a size is none that is taken, or a
            number that is to be stored in eight bits is not finite.
        MaskError: the mask is not 2:4 or not of this shape.
        KernelUnavailable: the kernel cannot run here.
    """

    def __init__(
        self,
        x_NK: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        both_ways: bool = False,
        kernel: str | None = None,
    ) -> None:
        check_matrix(x_NK)
        in_fours(x_NK, 1)
        self.dtype, self.device, self.both_ways = dtype or x_NK.dtype, x_NK.device, both_ways
        if self.dtype not in _DTYPES:
            raise InputError(f"a 2:4 matrix is held in {', '.join(map(str, _DTYPES))}; got {self.dtype}")
        held = x_NK.detach().to(_from(x_NK.dtype) if self.dtype in _BYTES else self.dtype)
        piece = Piece(_AsGiven(held), mask=_checked(x_NK, mask))
        self._turned, self._shape = False, (piece.N, piece.K)
        self._packed: Packed
        if self.dtype in _BYTES:
            if both_ways:
                raise InputError(f"both_ways=True is not for {self.dtype}: {_ONE_WAY}")
            self._packed = _packed_in_bytes(piece, self.dtype, kernel)
        else:
            built = _built(kernel or _usual(self.device))
            built.check(piece)
            self._packed = built.pack(piece, backward=both_ways)

    @classmethod
    def by_mvue(
        cls,
        x_NK: torch.Tensor,
        generator: torch.Generator | None = None,
        exact: bool = False,
        *,
        dtype: torch.dtype | None = None,
        both_ways: bool = False,
        kernel: str | None = None,
    ) -> Sparse24:
        """What ``mvue_24`` draws of each four along K, packed; arguments as there and above."""
        check_matrix(x_NK)
        drawn_NK = mvue_24(x_NK, 1, generator, exact)
        return cls(drawn_NK, mask_24(drawn_NK), dtype=dtype, both_ways=both_ways, kernel=kernel)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self._shape[::-1] if self._turned else self._shape)

    def t(self) -> Sparse24:
        """Aᵀ, of the same memory."""
        turned = object.__new__(Sparse24)
        vars(turned).update(vars(self), _turned=not self._turned)
        return turned

    def detach(self) -> Sparse24:
        """Itself: no gradient goes to it."""
        return self

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return _matmul(self, x)

    def __repr__(self) -> str:
        return f"Sparse24({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in _FUNCTIONS:
            known = "mm, matmul, addmm, linear, t and detach"
            raise InputError(f"a Sparse24 has {known}, not {getattr(function, '__name__', function)}")
        return _FUNCTIONS[function](*args, **(kwargs or {}))

    def times(self, x_BC: torch.Tensor, turned: bool) -> torch.Tensor:
        """x Aᵀ, contracted over K; or x A, over N, if turned."""
        if not turned:
            return self._packed(x_BC)
        if not self.both_ways:
            raise InputError(
                f"this {tuple(self._shape)} Sparse24 is packed along K, and this product, or gradient, is along N: "
                + (_ONE_WAY if self.dtype in _BYTES else "make it with both_ways=True")
            )
        return self._packed.grad_input(x_BC.contiguous())


class _AsGiven(WeightSource):
    """A tensor whose zeros stay, and what is not finite."""

    def __init__(self, w_NK: torch.Tensor) -> None:
        super().__init__(w_NK.shape[0], w_NK.shape[1], w_NK.dtype, w_NK.device, seed=0, bias=None)
        self._w_NK = w_NK

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._w_NK[start:stop].contiguous()


def _checked(x_NK: torch.Tensor, mask: torch.Tensor | None) -> DenseMask:
    if mask is None:
        return DenseMask(mask_24(x_NK))
    check_dense(mask=mask)
    if mask.shape != x_NK.shape or mask.device != x_NK.device:
        wanted, found = (f"{tuple(one.shape)} on {one.device}" for one in (x_NK, mask))
        raise MaskError(f"the mask must be that of {wanted}, got {found}")
    checked = DenseMask(mask)
    check_2to4(checked)
    return checked


def _usual(device: torch.device) -> str:
    return "cusparselt" if device.type == "cuda" else "reference"


def _built(spec: str) -> Kernel:
    kernel = build_kernel(spec)
    if type(kernel).pack is Kernel.pack:
        raise InputError(f"kernel {spec} packs nothing itself: name one that does, such as cusparselt or reference")
    return kernel


def _from(dtype: torch.dtype) -> torch.dtype:
    """In which numbers are that are stored in eight bits."""
    return torch.float32 if dtype == torch.float64 else dtype


def _packed_in_bytes(piece: Piece, dtype: torch.dtype, spec: str | None) -> Packed:
    if dtype == torch.float8_e5m2:
        if spec not in (None, "reference"):
            raise InputError(f"{dtype} is multiplied by kernel reference alone, not by {spec}")
        return build_kernel("reference").pack_quantised(piece, None, E5m2())
    format, device = format_of(dtype), piece.device
    if spec is None:
        spec = _usual(device)
        if device.type == "cuda" and piece.dtype != torch.bfloat16:
            spec += ":fused=no"  # which gives bf16
    kernel = _built(spec)
    if reason := kernel.unavailable(device, torch.bfloat16) or format.unavailable(device, torch.bfloat16):
        raise KernelUnavailable(f"kernel {spec} in {dtype}: {reason}")
    size = piece.N, piece.K, piece.dtype
    if reason := kernel.unsuitable_format(format, *size) or kernel.unsuitable(*size, piece.mask):
        raise InputError(f"kernel {spec} in {dtype}: {reason}")
    return kernel.pack_quantised(piece, None, format)


class _Product(torch.autograd.Function):
    """x times a Sparse24, whose gradient is the product along its other dimension."""

    @staticmethod
    def forward(ctx: Any, x_BC: torch.Tensor, matrix: Sparse24, turned: bool) -> torch.Tensor:
        ctx.matrix, ctx.turned = matrix, turned
        return matrix.times(x_BC, turned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.matrix.times(grad.contiguous(), not ctx.turned), None, None


def _matmul(one: Any, other: Any) -> torch.Tensor:
    if isinstance(one, Sparse24):
        if isinstance(other, Sparse24) or other.ndim != 2:
            raise InputError(f"{one} is multiplied by a dense matrix, got {other}")
        return _matmul(other.t(), one.t()).t()
    _check_factor(one, other)
    y = _Product.apply(one.reshape(-1, one.shape[-1]), other, not other._turned)
    return y.reshape(*one.shape[:-1], other.shape[1])


def _check_factor(x: torch.Tensor, matrix: Sparse24) -> None:
    if not x.ndim or x.shape[-1] != matrix.shape[0]:
        raise InputError(f"{tuple(x.shape)} and {matrix} have no product: {matrix.shape[0]} features are taken")
    if x.device != matrix.device:
        raise InputError(f"{matrix} is multiplied by what is on the same device, got {x.device}")
    if x.dtype not in (Format.dtypes if matrix.dtype in _BYTES else (matrix.dtype,)):
        raise InputError(f"{matrix} is not multiplied by {x.dtype}: cast that first")


def _linear(x: Any, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    y = _matmul(x, weight.t())
    if bias is not None and bias.shape != y.shape[-1:]:
        raise InputError(f"the bias must be ({y.shape[-1]},), got {tuple(bias.shape)}")
    return y if bias is None else (y + bias).to(y.dtype)


def _addmm(added: torch.Tensor, one: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    product = _matmul(one, other)
    if beta == 0:  # as torch has it, NaN and inf of what is added are ignored then; its gradient is zero
        added, beta = added.masked_fill(torch.ones((), dtype=torch.bool, device=added.device), 0), 1
    return torch.add(added if beta == 1 else beta * added, product, alpha=alpha)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.mm, torch.matmul, torch.Tensor.mm, torch.Tensor.matmul, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), _addmm),
    F.linear: _linear,
    torch.t: Sparse24.t,
    torch.detach: Sparse24.detach,
}
