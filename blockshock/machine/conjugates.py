"""How a product takes the input that all ranks have, and gives the output that all get; and both in backward.

The two directions are conjugate (Megatron-LM, Shoeybi et al., arXiv 1909.08053, §3): what is taken as it is has a
gradient that is summed, what is summed has one that is taken as it is, and likewise of feature shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blockshock.machine.combines import Combine, Part, Place, side_by_side, traced_gather, traced_sum
from blockshock.stages import copied, stage

Finish = Callable[[], torch.Tensor]


class Entry:
    """How a product takes its input, and what its grad_X becomes: here all of it, as it is.

    What ranks ask of each other in backward is started by ``give_back`` and waited for by the call that it returns,
    so that other work fits between. Of an empty batch there is nothing to ask, and no rank does.
    """

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK

    def give_back(self, grad: Part) -> Finish:
        """grad_X out of this rank's part of it."""
        whole = grad.all()
        return lambda: whole


class Replicated(Entry):
    """All of an input that every rank holds whole; in backward the ranks' gradients are summed."""

    def __init__(self, combine: Combine) -> None:
        self._combine = combine

    def give_back(self, grad: Part) -> Finish:
        if not grad.tokens:
            return super().give_back(grad)
        if torch.compiler.is_compiling():
            whole = traced_sum(self._combine, grad)
            return lambda: whole
        return self._combine.start_sum(grad)


class ColumnShard(Replicated):
    """Some columns of it, a view, that other ranks have too; in backward all come together again."""

    def __init__(self, combine: Combine, columns: slice, K: int) -> None:
        super().__init__(combine)
        self._columns, self._K = columns, K

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK[:, self._columns]

    def give_back(self, grad: Part) -> Finish:
        with stage("layout"):
            whole_BK = torch.zeros(grad.tokens, self._K, dtype=grad.dtype, device=grad.device)
        part_BS = grad.all()
        with stage("layout"):
            whole_BK[:, self._columns] = copied(part_BS)
        return super().give_back(Part.of(whole_BK))


class OwnFeatures(Entry):
    """This rank's columns of it, a view; in backward the shards are gathered."""

    place: Place = side_by_side

    def __init__(self, combine: Combine, columns: slice, K: int) -> None:
        self._combine, self._columns, self._K = combine, columns, K
        self._takes_all = columns == slice(0, K)

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK if self._takes_all else x_BK[:, self._columns]

    def give_back(self, grad: Part) -> Finish:
        if not grad.tokens:
            return lambda: grad.empty(self._K)
        if torch.compiler.is_compiling():
            whole = traced_gather(self._combine, grad, self._K // grad.features, self.place)
            return lambda: whole
        return self._combine.start_gather(grad, self.place)


class KeptColumns(OwnFeatures):
    """Of the columns that a rank takes its product uses only some, other ranks' products the others: in backward the
    gradients of these are gathered, and no zeros added.

    Args:
        kept: which columns these are; what takes them of a gradient.
        place: where each rank's belong in all of x.
    """

    def __init__(self, combine: Combine, columns: slice, K: int, kept: Any, place: Place) -> None:
        super().__init__(combine, columns, K)
        self.kept, self.place = kept, place


class Exit:
    """How ranks' products become y, and what of its gradient each takes back: here all of it, as it is."""

    def join(self, part: Part) -> torch.Tensor:
        """y out of this rank's part of it, contiguous."""
        return part.all()

    def take_back(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        return grad_y_BN


class Summed(Exit):
    """The ranks' products are summed; each takes the gradient as it is."""

    def __init__(self, combine: Combine) -> None:
        self._combine = combine

    def join(self, part: Part) -> torch.Tensor:
        if not part.tokens:
            return part.all()
        return traced_sum(self._combine, part) if torch.compiler.is_compiling() else self._combine.sum(part)


class Gathered(Exit):
    """Each rank's product is its features of y, those of ``rows`` of W; it takes back the gradient of these."""

    def __init__(self, combine: Combine, rows: slice, N: int) -> None:
        self._combine, self._rows, self._N = combine, rows, N

    def join(self, part: Part) -> torch.Tensor:
        if not part.tokens:
            return part.empty(self._N)
        if torch.compiler.is_compiling():
            return traced_gather(self._combine, part, self._N // part.features)
        return self._combine.gather(part)

    def take_back(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        return grad_y_BN[:, self._rows]
