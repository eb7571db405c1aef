"""The two ways to hold a 2:4 piece that is trained; optimizers that act elementwise take both along the dense way.

masked      the textbook way: the piece as a dense parameter; after a step the mask is applied again and the piece
            compressed again, in both directions.
compressed  the parameter is the kept values (N, K/2). Gradients and optimizer state are half the size; after a
            step the values are written to where the packings hold them, and nothing is compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.kernels import Packed
from blockshock.matrices import Kept, Mask, Piece, product
from blockshock.registry import Registry
from blockshock.stages import in_stage, stage
from blockshock.training.parameters import Training
from blockshock.training.storages import Storage


class SparseStorage(Storage):
    """A trained 2:4 piece, packed for both directions."""

    mask: Mask

    def __init__(self, piece: Piece, packed: Packed, training: Training, bias: nn.Parameter | None) -> None:
        parameter = self._initial(piece, packed).to(training.parameter_dtype(piece.dtype))
        super().__init__(nn.Parameter(parameter), packed, bias)
        self.mask = piece.kept

    def check(self) -> None:
        if self.is_stale:
            super().check()
        self.mask.check_unchanged()

    @staticmethod
    def check_parameters(**parameters: Any) -> None:
        """Raises InputError, before anything is built, for a parameter of a spec that is out of its range."""

    @staticmethod
    def _initial(piece: Piece, packed: Packed) -> torch.Tensor:
        """The parameter's first values."""
        raise NotImplementedError

    @classmethod
    def elements(cls, size: int) -> int:
        """Elements of the parameter of a piece of N·K = ``size``."""
        raise NotImplementedError

    @classmethod
    def extra_bytes(cls, N: int, K: int, itemsize: int, training: Training, mask: Mask | None) -> int:
        """Bytes held beside the packings; at most, if the mask is not known."""
        raise NotImplementedError


STORAGES: Registry[type[SparseStorage]] = Registry("storage")


def storage_of(spec: str) -> tuple[type[SparseStorage], dict[str, Any]]:
    """The storage that a spec such as ``masked:every=10`` names, and its parameters.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter, or not such a value.
    """
    kind, parameters = STORAGES.resolve(spec, skip=4)
    kind.check_parameters(**parameters)
    return kind, parameters


@STORAGES.register("compressed")
class CompressedStorage(SparseStorage):
    """The kept values (N, K/2) are the parameter; in the packing's own dtype they are the packing's own memory."""

    kept: Kept

    def __init__(self, piece: Piece, packed: Packed, training: Training, bias: nn.Parameter | None) -> None:
        super().__init__(piece, packed, training, bias)
        vars(self)["kept"] = Kept(piece.kept, piece.device, shared=True)  # as the packing

    def tensors(self) -> list[torch.Tensor]:
        return [*super().tensors(), *self.kept.buffers()]

    @torch.no_grad()
    def _share_memory(self) -> None:
        values = self.packed.values
        if values.dtype == self.parameter.dtype and not self.parameter.is_inference():
            values.copy_(self.parameter)
            self.parameter.data = values

    def shares_memory(self) -> bool:
        """Whether the parameters are the packing's own memory, for both directions: the bias is made that here."""
        values, parameter, bias = self.packed.values, self.parameter, self.bias
        if self._shards or self.packed.backward is not None or values.is_inference():
            return False
        if (values.dtype, values.data_ptr()) != (parameter.dtype, parameter.data_ptr()):
            return False
        if bias is not None:
            own, held = bias.detach(), self.packed.bias
            if held is None or held.dtype != own.dtype or self.packed.arrange(own).data_ptr() != own.data_ptr():
                return False
            self.packed._buffers["bias"] = own
        return True

    @staticmethod
    def _initial(piece: Piece, packed: Packed) -> torch.Tensor:
        if packed.values.numel() * 2 != piece.N * piece.K:
            raise InputError("compressed storage needs a kernel that holds kept values alone; take masked")
        return packed.values

    @classmethod
    def elements(cls, size: int) -> int:
        return size // 2

    @classmethod
    def extra_bytes(cls, N: int, K: int, itemsize: int, training: Training, mask: Mask | None) -> int:
        return N * K // 2 * training.bytes_beside(itemsize) + Kept.held_bytes(N, K, mask)

    def used(self, x_BK: torch.Tensor) -> torch.Tensor:
        return self.packed.used(x_BK)

    def grad_weight(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        dtype = self._parameters["parameter"].dtype  # type: ignore[union-attr]  # where attributes are looked up in at last
        return in_stage("grad_w", self.kept.gradient, grad_y_BN, x_BK, dtype, self.packed.sorted_by_pattern)  # type: ignore[no-any-return]

    def dense(self, held: torch.Tensor) -> torch.Tensor:
        out_NK = held.new_empty(len(held), 2 * held.shape[1])
        self.kept.scatter(self.packed.disarrange(held), out_NK)
        return out_NK

    def held(self, dense_NK: torch.Tensor) -> torch.Tensor:
        return self.packed.arrange(self.kept.gather(dense_NK))


@STORAGES.register("masked")
class MaskedStorage(SparseStorage):
    """The piece as a dense (N, K) parameter, zero where the mask drops, and the mask (one byte an element).

    Args:
        every: how many steps lie from one compression to the next, 0 for no compression at all. Between, the products
            use the weights of the last one.
    """

    def __init__(
        self, piece: Piece, packed: Packed, training: Training, bias: nn.Parameter | None, every: int = 1
    ) -> None:
        super().__init__(piece, packed, training, bias)
        self.dropped_NK = piece.kept.complement().dense().to(piece.device)
        self.every, self._steps, self._is_behind = every, 0, False

    @staticmethod
    def check_parameters(**parameters: Any) -> None:
        if (every := parameters.get("every", 1)) < 0:
            raise InputError(f"masked storage compresses every so many steps, or 0 for never; got every={every}")

    def tensors(self) -> list[torch.Tensor]:
        return [*super().tensors(), self.dropped_NK]

    @staticmethod
    def _initial(piece: Piece, packed: Packed) -> torch.Tensor:
        return piece.dense()

    @classmethod
    def elements(cls, size: int) -> int:
        return size

    @classmethod
    def extra_bytes(cls, N: int, K: int, itemsize: int, training: Training, mask: Mask | None) -> int:
        return N * K * (training.parameter_bytes(itemsize) + 1)

    def grad_weight(self, grad_y_BN: torch.Tensor, x_BK: torch.Tensor) -> torch.Tensor:
        with stage("grad_w"):
            return product(grad_y_BN.T, x_BK, self.parameter.dtype).masked_fill_(self.dropped_NK, 0)

    @torch.no_grad()
    def after_step(self, held: Sequence[torch.Tensor]) -> None:
        if self.is_spared(held):
            self._take_bias()
            return
        self._steps += 1
        if self.every and self._steps % self.every == 0:
            self.refresh()
            return
        self._is_behind = True
        self._apply_mask()
        self._see()

    @torch.no_grad()
    def refresh(self) -> None:
        self._apply_mask()
        super().refresh()

    def _take_over(self) -> None:
        super()._take_over()
        self._is_behind = False

    def difference(self) -> str | None:
        dropped = self.parameter.detach()[self.dropped_NK]
        if dropped.count_nonzero():
            return f"a parameter holds {dropped[dropped != 0][0].item()} where its mask drops"
        # Between two compressions the products use the weights of the last one: that is meant.
        return None if self._is_behind and not self.is_stale else super().difference()

    def _apply_mask(self) -> None:
        if self._shards:
            return  # they stay zero where the mask drops, as their gradients are
        with stage("mask"):
            self.parameter.masked_fill_(self.dropped_NK, 0)

    def pack(self) -> None:
        with stage("compress"):
            self._write(self.packed)

    def _write(self, packed: Packed) -> None:
        packed.recompress(self.parameter.to(packed.values.dtype))

    def held(self, dense_NK: torch.Tensor) -> torch.Tensor:
        return dense_NK.masked_fill(self.dropped_NK, 0)
