"""grad_y @ W for kernels that contract over K alone: a packing of Wᵀ, or a dense one where the mask forbids that."""

from __future__ import annotations

import torch
from torch import nn

from blockshock.errors import MaskError
from blockshock.kernels.base import Kernel, packed_bytes
from blockshock.kernels.dense import PackedDense
from blockshock.kernels.packed import Backward, Packed
from blockshock.kernels.transpose import TileOrder
from blockshock.matrices import Kept, Mask, Piece, check_transposable


def backward_of(kernel: Kernel, piece: Piece) -> Backward:
    """The piece packed by the kernel for its backward product."""
    try:
        check_transposable(piece.kept)
    except MaskError:
        return DenseBackward(piece, "dense, for the mask is not transposable")
    transposed = piece.transposed()
    if reason := kernel.unsuitable(transposed.N, transposed.K, transposed.dtype, transposed.mask):
        return DenseBackward(piece, f"dense, for Wᵀ {reason}")
    return TransposedBackward(kernel.pack(transposed), piece)


class TransposedBackward(nn.Module):
    """A packing of Wᵀ, 2:4 because the mask is transposable, in the kernel's own format."""

    def __init__(self, packed: Packed, piece: Piece) -> None:
        super().__init__()
        self.packed, self.algorithm = packed, ""
        packed.product_stage = "grad_x"
        self._order = TileOrder(piece.kept, piece.device)

    def forward(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        return self.packed(grad_y_BN)

    def into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        return self.packed.into(grad_y_BN, out_BK)

    def write(self, values_NJ: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
        self._order.transpose(values_NJ, self.packed.values, rows_NJ)

    def recompress(self, w_NK: torch.Tensor) -> None:
        self.packed.recompress(w_NK.T.contiguous())


class DenseBackward(nn.Module):
    """The piece with its zeros, which every mask allows."""

    def __init__(self, piece: Piece, algorithm: str) -> None:
        super().__init__()
        self.packed, self.algorithm = PackedDense(piece.dense(), None), algorithm
        self._kept = Kept(piece.kept, piece.device)

    def forward(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        return self.packed.grad_input(grad_y_BN)

    def into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        return self.packed.grad_into(grad_y_BN, out_BK)

    def write(self, values_NJ: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
        if rows_NJ is not None:
            rows_NJ.copy_(values_NJ)
        self._kept.scatter(values_NJ, self.packed.w_NK)

    def recompress(self, w_NK: torch.Tensor) -> None:
        self.packed.recompress(w_NK)


class SparseCores(Kernel):
    """A kernel of the sparse tensor cores, which contract over K alone. Stores 9/16 of dense bytes."""

    device_types = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16)
    unit = "2:4"

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        packed = self.pack_forward(piece, bias)
        packed.backward = backward_of(self, piece) if backward else None
        return packed

    def pack_forward(self, piece: Piece, bias: torch.Tensor | None) -> Packed:
        """The packing without what it needs to go backward."""
        raise NotImplementedError

    def weight_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None = None) -> int:
        return packed_bytes(N, K, itemsize)

    def backward_bytes(self, N: int, K: int, itemsize: int, mask: Mask | None) -> int:
        dense, order = N * K * itemsize + Kept.held_bytes(N, K, mask), TileOrder.held_bytes(N, K, mask)
        if mask is None:
            return max(self.weight_bytes(K, N, itemsize) + order, dense)
        if not _looks_transposable(mask) or self.unsuitable(K, N, self.dtypes[0], mask.transposed()):
            return dense
        return self.weight_bytes(K, N, itemsize, mask.transposed()) + order


def no_cuda() -> str | None:
    """None, or why nothing that is written in CUDA can run."""
    if torch.version.cuda is None:
        return "is written in CUDA, and this torch was built without it: install a CUDA build of torch"
    return None


def too_old(device: torch.device) -> str | None:
    """None, or why a GPU has no sparse tensor cores."""
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"2:4 tensor cores start at compute capability 8.0, this GPU has {major}.{minor}"


def _looks_transposable(mask: Mask) -> bool:
    """Whether the first rows of a mask are those of a transposable one: all, for masks made alike everywhere."""
    return mask.N % 4 == 0 and bool((mask.rows(0, 4).sum(0) == 2).all())
