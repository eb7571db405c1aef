"""Kept values that lie on one CPU, as the one matrix that they make: a small layer's product then is an nn.Linear's.

To gather what halves multiply, or to decompress W′, takes a small layer longer than all that is around it, and a CPU
gains nothing by it. Where nothing but the output is wanted of a layer, and not what its pieces cost, one product will
do. They are trained all the same, each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakMethod

import torch
from torch.nn import functional as F

from blockshock.kernels import Packed
from blockshock.machine import torch_internals
from blockshock.matrices import product
from blockshock.methods.product import check_once, check_untangent, check_untransformed, contiguous, without_checks
from blockshock.stages import in_stage
from blockshock.training import CompressedStorage, Together, first_difference

MOST_JOINED = 1 << 16
"""Elements of W: it, and where each kept value lies in it, are held beside these."""


Take = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""Gathers the kept values of a matrix, given 1 and their places."""


class Joined(Together):
    """What two halves come to, or one W′: made again when a part was written.

    Args:
        order: of W's columns, int64 (K,), in which the parts have them; None for their own.
        left: told when a parameter is spread, and each part multiplies for itself again.

    Attributes:
        w_NK, bias: the matrix, and the bias or None.
        dtype: of the parameters.
    """

    def __init__(
        self,
        parts: Sequence[CompressedStorage],
        order: torch.Tensor | None = None,
        left: WeakMethod[Callable[[], None]] | None = None,
    ) -> None:
        self._places = [_places(part, order) for part in parts]
        self._takes = [(_take_by(part, places), places) for part, places in zip(parts, self._places, strict=True)]
        super().__init__(parts, left)

    def renew(self) -> None:
        first, packed = self.parts[0], self.parts[0].packed
        self._of_first = first._parameters
        N, J = packed.values.shape
        self.dtype = first.parameter.dtype
        self.w_NK = packed.values.new_zeros(N, 2 * J)  # another one: not all modes of torch may write to all
        pairs = zip(self.parts, self._places, strict=True)
        self._moves: list[Callable[[], Any]] = [_move(part, places, self.w_NK) for part, places in pairs]
        held = packed.bias
        self.bias = None if held is None else packed.disarrange(held)
        if self.bias is not None and self.bias is not held:
            self._moves.append(partial(_disarrange, packed, self.bias))
        self._whole = self.w_NK
        self._trained: list[int] | None = None
        self.make()

    def make(self) -> None:
        for move in self._moves:
            move()

    def tensors(self) -> list[torch.Tensor]:
        """What it holds beside the parts."""
        return [*self._places, *(held for held in (self.w_NK, self.bias) if held is not None)]

    def __call__(self, x_BK: torch.Tensor) -> torch.Tensor:
        """x @ Wᵀ + bias, differentiable as ``product`` is. Raises StalePacking as each part does."""
        if not torch_internals.is_plain(x_BK):
            check_untransformed(x_BK)
            check_untangent(*self._differentiated())
        seen, trained = self._states_of(self._followed)
        if seen != self._seen:
            self._look_again()
        if not torch.is_grad_enabled():
            return in_stage("matmul", F.linear, x_BK, self.w_NK, self.bias)  # type: ignore[no-any-return]
        if not self.is_own:
            return _apply(x_BK, self, self.writes, *self._differentiated())  # type: ignore[no-any-return]
        if trained != self._trained:
            parameters = self._differentiated()
            self._whole = _Whole.apply(self.w_NK, self._takes, *parameters[::2])
            self._trained, self._those = trained, parameters  # no others get their identities meanwhile
        y_BN: torch.Tensor = in_stage("matmul", F.linear, x_BK, self._whole, self._of_first["bias"])
        if x_BK.requires_grad and (node := y_BN.grad_fn) is not None:
            node.register_prehook(partial(self._go_back, self.writes))
        return y_BN

    def _differentiated(self) -> list[torch.Tensor | None]:
        """Each part's parameter, and its bias or None."""
        return [one for held in self.held for one in held]

    def _go_back(self, writes: int, grads: tuple[torch.Tensor | None, ...]) -> None:
        """What torch's own backward pass of a product begins with where it reads W."""
        if grads[0] is not None and (torch.is_grad_enabled() or not torch_internals.is_plain(grads[0])):
            check_once()
            check_untransformed(grads[0])
        self.check_since(writes)

    def grad_weights(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of each part's parameter."""
        grad_NK = product(grad_y_BN.t(), x_BK, self.dtype)
        return [take(grad_NK, 1, places) for take, places in self._takes]

    def difference(self) -> str | None:
        """Where what multiplies differs from the kept values, bit for bit; None if nowhere."""
        self.check()
        should_NK = torch.zeros_like(self.w_NK)
        for part, places in zip(self.parts, self._places, strict=True):
            _move(part, places, should_NK)()
        what = first_difference(self.w_NK, should_NK)
        return f"the weight that multiplies holds {what} as the packing" if what else None


class _Whole(torch.autograd.Function):
    """W, of which autograd knows what it was made of, however often that is written."""

    @staticmethod
    def forward(ctx: Any, w_NK: torch.Tensor, takes: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.takes = takes
        return w_NK.detach()

    @staticmethod
    def backward(ctx: Any, grad_NK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled() or not torch_internals.is_plain(grad_NK):
            check_once()
            check_untransformed(grad_NK)
        return None, None, *[take(grad_NK, 1, places) for take, places in ctx.takes]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BK: torch.Tensor, joined: Joined, writes: int, *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.joined, ctx.writes = joined, writes
        ctx.save_for_backward(x_BK)
        return in_stage("matmul", F.linear, x_BK, joined.w_NK, joined.bias)

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled() or not torch_internals.is_plain(grad_y_BN):
            check_once()
            check_untransformed(grad_y_BN)
        joined, needed = ctx.joined, ctx.needs_input_grad  # from 3 on of each part's parameter, and bias
        grads: list[torch.Tensor | None] = [None] * len(needed)
        if not grad_y_BN.is_contiguous():
            grad_y_BN = contiguous(grad_y_BN)
        if needed[0]:
            joined.check_since(ctx.writes)
            grads[0] = in_stage("grad_x", torch.mm, grad_y_BN, joined.w_NK)
        if any(needed[3::2]):
            grads[3::2] = in_stage("grad_w", joined.grad_weights, grad_y_BN, ctx.saved_tensors[0])
        if needed[4]:
            grads[4] = grad_y_BN.sum(0, dtype=joined.dtype)
        return tuple(grads)


_apply = without_checks(_Product)


def _places(part: CompressedStorage, order: torch.Tensor | None) -> torch.Tensor:
    """Where in W the kept values lie, in the order of the packing: in which columns, (J,) where these are the same of
    each row, else (N, J); or, where the packing has rows in another order, row by row (N·J,)."""
    (N, J), device = part.packed.values.shape, part.packed.values.device
    numbers = torch.arange(1, N * J + 1, device=device)
    numbered = part.dense(numbers.view(N, J)).flatten()
    places = numbered.nonzero().flatten()
    places_NJ = places[numbered[places].argsort()].view(N, J)
    rows_NJ, columns_NJ = places_NJ // (2 * J), places_NJ % (2 * J)
    columns_NJ = columns_NJ if order is None else order[columns_NJ]
    if not (rows_NJ == torch.arange(N, device=device)[:, None]).all():
        return (2 * J * rows_NJ + columns_NJ).flatten()
    return columns_NJ[0].clone() if (columns_NJ == columns_NJ[0]).all() else columns_NJ


def _move(part: CompressedStorage, places: torch.Tensor, w_NK: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What writes the kept values, as they are when it is called, to their places in W."""
    values_NJ, patterns = part.packed.values, part.kept.patterns
    if places.ndim == 2:
        return partial(w_NK.scatter_, 1, places, values_NJ)
    if len(places) > values_NJ.shape[1]:
        return partial(w_NK.view(-1).scatter_, 0, places, values_NJ.view(-1))
    if patterns is not None and len(patterns) == 1:
        kept = patterns.patterns[0].kept
        if places.tolist() == kept.columns(w_NK.shape[1]) and (words := kept.words(values_NJ, w_NK)) is not None:
            return partial(words[1].copy_, words[0])
    return partial(w_NK.scatter_, 1, places.expand(values_NJ.shape), values_NJ)


def _take_by(part: CompressedStorage, places: torch.Tensor) -> Take:
    if places.ndim == 2:
        return torch.gather
    return torch.index_select if len(places) == part.packed.values.shape[1] else _take_row_by_row


def _take_row_by_row(w_NK: torch.Tensor, dim: int, places: torch.Tensor) -> torch.Tensor:
    return w_NK.view(-1).index_select(0, places).view(len(w_NK), -1)


def _disarrange(packed: Packed, bias: torch.Tensor) -> None:
    """Write a packing's bias, as it is when this is called, in the order of W's rows."""
    assert packed.bias is not None
    bias.copy_(packed.disarrange(packed.bias))
