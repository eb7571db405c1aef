"""A product whose W has its columns in another order: it takes x in that order, and gives grad_X back in x's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from blockshock.machine import Entry, Part
from blockshock.matrices import inverse
from blockshock.methods.estimate import Shape
from blockshock.pruning import SEARCH_BYTES, pruner_of
from blockshock.stages import copied, stage


@dataclass(frozen=True)
class Order:
    """How x gets into the order of W's columns, and grad_X out of it: in the stage ``layout``, and counted.

    Attributes:
        channels_S: of x, that a rank reads, in the order in which it reads them; int64.
        inverse_K: where each of x's channels is in that order, of all ranks.
    """

    channels_S: torch.Tensor
    inverse_K: torch.Tensor

    @classmethod
    def of(cls, permutation: torch.Tensor, columns: slice) -> Order:
        """Of W's columns in this order, of which a rank has some."""
        return cls(permutation[columns], inverse(permutation))

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds."""
        return [self.channels_S, self.inverse_K]

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return _gathered(x_BK, self.channels_S)

    def undo(self, grad_BK: torch.Tensor) -> torch.Tensor:
        return _gathered(grad_BK, self.inverse_K)


class Permuted(Entry):
    """An entry that takes what it takes in an order, and gives back what ranks agreed on in x's own."""

    def __init__(self, entry: Entry, order: Order) -> None:
        self._entry, self._order = entry, order

    def take(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self._order.take(x_BK)

    def give_back(self, grad: Part) -> Callable[[], torch.Tensor]:
        agree = self._entry.give_back(grad)
        return lambda: self._order.undo(agree())


def order_bytes(shape: Shape) -> tuple[int, int]:
    """Bytes that the order of a layer's channels takes, by arithmetic: held, and at most while it is searched for,
    which each rank does by itself. None where its pruner does not permute.
    """
    if not pruner_of(shape.picks.get("pruner", "magnitude"))[2]:
        return 0, 0
    return 2 * 8 * shape.K, SEARCH_BYTES * shape.N * shape.K


def _gathered(x_BK: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    with stage("layout"):
        return copied(x_BK.index_select(1, index))
