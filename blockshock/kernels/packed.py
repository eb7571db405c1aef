"""What a packing is: a piece of W in a kernel's own format, which multiplies, goes backward and takes new values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.autograd.graph import increment_version

from blockshock.errors import StalePacking
from blockshock.machine import Peers, held_bytes
from blockshock.matrices import Every
from blockshock.measure import FLOAT32, Operand
from blockshock.stages import copied, stage


class Backward(Protocol):
    """What a packing that contracts over K alone holds for grad_y @ W.

    Attributes:
        algorithm: what it is, where that is not the packing's own kernel.
    """

    algorithm: str

    @property
    def packed(self) -> Packed:
        """What multiplies."""

    def __call__(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """grad_y @ W: (B, N) → (B, K)."""

    def into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        """The same, written where others read it."""

    def write(self, values_NJ: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
        """Take over new kept values; write them, in the packing's dtype, to ``rows_NJ`` too if that is given."""

    def recompress(self, w_NK: torch.Tensor) -> None:
        """Take over the values of a masked dense matrix."""


class Packed(nn.Module):
    """A piece in a kernel's own format. Holds the weights as buffers and nothing else of size.

    Attributes:
        algorithm: what the kernel chose to run, for the record.
        backward: for kernels that cannot contract over N, what does it for them.
        product_stage: the stage that the product counts as; ``grad_x`` in a packing of Wᵀ.
        writes: how often its values were written since it was packed.
        sorted_by_pattern: ``arrange`` sorts rows by the mask's row pattern; otherwise it leaves them in order.
        unit: whose rate its product can reach: that of ``dense`` products, or of the sparse tensor cores, ``2:4``.
        fuses: it has ``summed``.
        roundings: of an element of y to the dtype, on its way.
        sums: how it adds up over K.
    """

    bias: torch.Tensor | None
    backward: Backward | None
    sorted_by_pattern = False
    fuses = False
    unit: ClassVar[str] = "dense"
    roundings = 1
    sums = FLOAT32

    def __init__(self) -> None:
        super().__init__()
        self.algorithm, self.product_stage = "", "matmul"
        self.backward, self.writes = None, 0

    def tensors(self) -> list[torch.Tensor]:
        """All that it holds."""
        return [*self.buffers()]  # as torch 2.11 traces it

    def hold_bias(self, bias: torch.Tensor | None) -> None:
        """Keep a bias (N,), or None."""
        self.register_buffer("bias", None if bias is None else self.arrange(bias).clone(), persistent=False)

    def arrange(self, rows_NJ: torch.Tensor) -> torch.Tensor:
        """Rows of W, or elements of the bias, in the order in which the packing has them."""
        return rows_NJ

    def disarrange(self, arranged_NJ: torch.Tensor) -> torch.Tensor:
        """The inverse of ``arrange``."""
        return arranged_NJ

    @property
    def values(self) -> torch.Tensor:
        """The kept values (N, K/2) where the packing holds them: writing them changes the forward product."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the piece."""
        N, J = self.values.shape
        return N, 2 * J

    @property
    def operand(self) -> Operand:
        """What the forward product multiplies by, for the limit of its time."""
        held = [buffer for name, buffer in self.named_buffers() if name.split(".")[0] not in ("backward", "bias")]
        return Operand(self.values.numel(), held_bytes(held), self.unit)

    def used(self, x_BK: torch.Tensor) -> torch.Tensor:
        """The columns of x that the product uses, (B, K/2), where all rows of W keep the same, or x itself: ``forward``
        and ``into`` take either. Stage ``layout``."""
        return x_BK

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        """x @ Wᵀ (+ bias): (B, K) → (B, N). Stages ``layout`` and ``matmul``.

        What is contiguous is no view of more: ranks sum over it in place, compiled code too.
        """
        raise NotImplementedError

    def grad_input(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        """grad_y @ W: (B, N) → (B, K), for a contiguous grad_y. Stages ``layout`` and ``grad_x``."""
        assert self.backward is not None, "packed for the forward pass alone"
        return self.backward(grad_y_BN)

    def into(self, x_BK: torch.Tensor, out_BN: torch.Tensor) -> torch.Tensor:
        """The forward product, written where others read it; where the kernel cannot, copied there."""
        y_BN = self(x_BK)
        with stage("layout"):
            return out_BN.copy_(copied(y_BN))

    def laid_out(self, x_BK: torch.Tensor) -> Sequence[torch.Tensor]:
        """What ``forward`` makes of x before it multiplies, or x itself: tensors with a row for each of its rows.

        For products of some rows at a time, which are not to begin with copies of their own. Stage ``layout``.
        """
        return (x_BK,)

    def laid_into(self, laid: Sequence[torch.Tensor], out_BN: torch.Tensor) -> torch.Tensor:
        """``into`` of some rows of what ``laid_out`` gives, the same rows of each."""
        (x_BK,) = laid
        return self.into(x_BK, out_BN)

    def grad_into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        """``grad_input``, written likewise."""
        if self.backward is not None:
            return self.backward.into(grad_y_BN, out_BK)
        grad_x_BK = self.grad_input(grad_y_BN)
        with stage("layout"):
            return out_BK.copy_(copied(grad_x_BK))

    def grad_kept(self, grad_y_BN: torch.Tensor, kept: Every, out_BJ: torch.Tensor | None = None) -> torch.Tensor:
        """Of ``grad_input`` the columns (B, K/2) that a mask keeps whose rows are all alike; the others are zeros."""
        grad_x_BK = self.grad_input(grad_y_BN)
        with stage("layout"):
            found_BJ = copied(kept.take(grad_x_BK))
            return found_BJ if out_BJ is None else out_BJ.copy_(found_BJ)

    def summed(self, x_BK: torch.Tensor, peers: Peers) -> torch.Tensor:
        """The forward products of all ranks, summed; of a kernel that fuses."""
        raise NotImplementedError

    def check_since(self, writes: int) -> None:
        """Raises StalePacking if it was written after it had been written so often."""
        if self.writes != writes:
            raise StalePacking.before_backward(self.values)

    def write(self, values_NJ: torch.Tensor) -> None:
        """Take over new kept values, of any dtype, in the order of ``values``; or ``values`` itself, changed."""
        vars(self)["writes"] += 1  # what setting it comes to, without what modules look for then
        values = self.values
        mine = values_NJ.data_ptr() == values.data_ptr()
        if self.backward is not None:
            self.backward.write(values_NJ, None if mine else values)
        elif not mine:
            values.copy_(values_NJ)
        if mine and not values.is_inference():
            increment_version([values])  # the parameter whose memory this is may have a counter of its own

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        """The kept values of a dense matrix, in the order of ``values``."""
        raise NotImplementedError

    def recompress(self, w_NK: torch.Tensor) -> None:
        """Take over a dense matrix, zero where the mask drops, the way compression does."""
        self.write(self.kept_of(w_NK))
