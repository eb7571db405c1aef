"""Kept values that lie on one CPU, as the one matrix that they make: a small layer's product then is an nn.Linear's.

To gather what halves multiply, or to decompress W′, takes a small layer longer than all that is around it, and a CPU
gains nothing by it. Where nothing but the output is wanted of a layer, and not what its pieces cost, one product will
do. They are trained all the same, each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from blockshock.matrices import product
from blockshock.stages import stage
from blockshock.training import CompressedStorage, first_difference

MOST_JOINED = 1 << 16
"""Elements of W: it, and where each kept value lies in it, are held beside these."""


class Joined:
    """The matrix (N, K) and the bias (N,), made again when a part was written.

    Attributes:
        parts: which make it up: two halves, or one W′; the bias is with the first.
    """

    def __init__(self, parts: Sequence[CompressedStorage]) -> None:
        self.parts, self._written = parts, [-1]
        self._places = [_places(part) for part in parts]
        self._w_NK, self._bias = self._made()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_written": [-1], "_w_NK": None, "_bias": None}

    def _made(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        packed = self.parts[0].packed
        N, J = packed.values.shape
        w_NK = packed.values.new_zeros(N, 2 * J)  # another one each time: not all modes of torch may write to all
        for part, places in zip(self.parts, self._places, strict=True):
            w_NK.view(-1).scatter_(0, places, part.packed.values.view(-1))
        return w_NK, None if packed.bias is None else packed.disarrange(packed.bias)

    def _now(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        written = [part.packed.writes for part in self.parts]
        if written != self._written:
            (self._w_NK, self._bias), self._written = self._made(), written
        return self._w_NK, self._bias

    def tensors(self) -> list[torch.Tensor]:
        """What it holds beside the parts."""
        return [*self._places, *(tensor for tensor in self._now() if tensor is not None)]

    def __call__(self, x_BK: torch.Tensor) -> torch.Tensor:
        """x @ Wᵀ + bias. Raises StalePacking as each part does."""
        for part in self.parts:
            part.check()
        w_NK, bias = self._now()
        with stage("matmul"):
            return F.linear(x_BK, w_NK, bias)

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """grad_y @ W."""
        with stage("grad_x"):
            return grad_y_BN @ self._now()[0]

    def grad_weights(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of each part's parameter."""
        with stage("grad_w"):
            grad_NK = product(grad_y_BN.T, x_BK, self.parts[0].parameter.dtype)
            N, K = grad_NK.shape
            return [grad_NK.view(-1).index_select(0, places).view(N, K // 2) for places in self._places]

    def difference(self) -> str | None:
        """Where what multiplies differs from the kept values, or the bias, bit for bit; None if nowhere."""
        for name, found, should in zip(("weight", "bias"), self._now(), self._made(), strict=True):
            if found is not None and should is not None and (what := first_difference(found, should)):
                return f"the {name} that multiplies holds {what} as the packing"
        return None


def _places(part: CompressedStorage) -> torch.Tensor:
    """Where in W, row by row, each of a part's kept values lies, in the order that the packing has them."""
    values = part.packed.values
    numbers = torch.arange(1, values.numel() + 1, device=values.device)
    numbered = part.dense(numbers.view(values.shape)).flatten()
    places = numbered.nonzero().flatten()
    return places[numbered[places].argsort()]
