"""What a block kernel is: it packs a block-sparse W once, as the blocks that are kept, and the packing multiplies.

A block kernel is one file in this folder with one class registered in BLOCK_KERNELS; nothing else needs to know of it.
Kernels of the other registry multiply by what is 2:4, and cannot take these masks, nor these theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from blockshock.errors import InputError, KernelUnavailable
from blockshock.kernels.base import not_among
from blockshock.kernels.packed import Packed
from blockshock.matrices import Piece, in_blocks, kept_blocks, row_blocks
from blockshock.registry import Registry


@dataclass(frozen=True)
class BlockLayout:
    """What the bytes of a packing go by.

    Attributes:
        N, K: of the matrix.
        size: of a block.
        count: of those that are kept.
    """

    N: int
    K: int
    size: int
    count: int

    @property
    def transposed(self) -> BlockLayout:
        return BlockLayout(self.K, self.N, self.size, self.count)

    def index_bytes(self) -> int:
        """Of the column of each block, and of where rows of blocks begin."""
        return 8 * (self.count + self.N // self.size + 1)

    def value_bytes(self, itemsize: int) -> int:
        return self.count * self.size**2 * itemsize


class PackedBlocks(Packed):
    """Kept blocks, row by row of blocks, in compressed sparse rows (BSR).

    Buffers: ``blocks`` (J, size, size), zero where a mask drops inside of one; ``columns`` (J,), where each lies, in
    blocks; ``starts`` (N/size + 1,), the first block of each row of blocks.

    Args:
        size: of the blocks that are stored: those that hold something the mask keeps.
    """

    blocks: torch.Tensor
    columns: torch.Tensor
    starts: torch.Tensor

    def __init__(self, piece: Piece, size: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.N, self.K, self.size = piece.N, piece.K, size
        kept_RC = kept_blocks(piece.kept, size).to(piece.device)
        counts = kept_RC.sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        columns = kept_RC.nonzero()[:, 1].clone()
        blocks = torch.empty(len(columns), size, size, dtype=piece.dtype, device=piece.device)
        ends = starts.tolist()
        for start, stop in row_blocks(piece.N, piece.source.K * piece.dtype.itemsize, multiple=size):
            w_RK = piece.block(start, stop).where(piece.kept.rows(start, stop).to(piece.device), 0)
            first, last = start // size, stop // size
            blocks[ends[first] : ends[last]] = in_blocks(w_RK, size)[kept_RC[first:last]]
        for name, buffer in (("blocks", blocks), ("columns", columns), ("starts", starts)):
            self.register_buffer(name, buffer, persistent=False)
        self.hold_bias(bias)

    @property
    def values(self) -> torch.Tensor:
        """The kept blocks."""
        return self.blocks

    @property
    def shape(self) -> tuple[int, int]:
        return self.N, self.K

    @property
    def rows(self) -> torch.Tensor:
        """The row of each block, in blocks."""
        each = torch.arange(len(self.columns), device=self.columns.device)
        return torch.searchsorted(self.starts, each, right=True) - 1

    def kept_of(self, w_NK: torch.Tensor) -> torch.Tensor:
        return in_blocks(w_NK, self.size)[self.rows, self.columns]


class TransposedBlocks(nn.Module):
    """grad_y @ W by a packing of Wᵀ: its blocks are those of W, each transposed, in another order."""

    order: torch.Tensor

    def __init__(self, packed: PackedBlocks, forward: PackedBlocks) -> None:
        super().__init__()
        self.packed, self.algorithm = packed, ""
        packed.product_stage = "grad_x"
        # Sorted by column, and by row among those of one column: they lie by rows already.
        self.register_buffer("order", forward.columns.argsort(stable=True), persistent=False)

    @staticmethod
    def held_bytes(layout: BlockLayout) -> int:
        """Bytes beside the packing."""
        return 8 * layout.count

    def forward(self, grad_y_BN: torch.Tensor) -> torch.Tensor:
        return self.packed(grad_y_BN)

    def into(self, grad_y_BN: torch.Tensor, out_BK: torch.Tensor) -> torch.Tensor:
        return self.packed.into(grad_y_BN, out_BK)

    def write(self, values_NJ: torch.Tensor, rows_NJ: torch.Tensor | None) -> None:
        if rows_NJ is not None:
            rows_NJ.copy_(values_NJ)
        self.packed.values.copy_(values_NJ[self.order].transpose(1, 2))

    def recompress(self, w_NK: torch.Tensor) -> None:
        self.packed.recompress(w_NK.T)


class BlockKernel:
    """A way to multiply by a block-sparse W.

    Attributes:
        device_types, dtypes: where it can run at all, and what it multiplies.
        contender: timed by default; False for kernels that exist to be right, and for the ablation.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    contender: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """By which it is registered."""
        return BLOCK_KERNELS.name_of(type(self))

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why this kernel cannot run on that device and dtype."""
        return not_among(self.device_types, self.dtypes, device, dtype)

    def unsuitable(self, N: int, K: int, size: int) -> str | None:
        """None, or one sentence that says why this kernel cannot take that shape in blocks of that size."""
        return None

    def check(self, piece: Piece, size: int) -> None:
        """Raises KernelUnavailable or InputError, with the reason, unless ``pack`` can take this piece here."""
        if reason := self.unavailable(piece.device, piece.dtype):
            raise KernelUnavailable(f"block kernel {self.name}: {reason}")
        if piece.mask is None:
            raise InputError(f"block kernel {self.name}: needs a mask of blocks, and this piece is dense")
        if reason := self.unsuitable(piece.N, piece.K, size):
            raise InputError(f"block kernel {self.name}: {reason}")

    def pack(self, piece: Piece, size: int, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        """Pack a piece. ``check`` it first: this assumes that it passed.

        Args:
            size: of the blocks of its mask.
            backward: ``grad_input`` will be asked for, so that what it needs beside the packing is packed too.
        """
        packed = self.pack_forward(piece, size, bias)
        if backward:
            packed.backward = TransposedBlocks(self.pack_forward(piece.transposed(), size, None), packed)
        return packed

    def pack_forward(self, piece: Piece, size: int, bias: torch.Tensor | None) -> PackedBlocks:
        """The packing without what it needs to go backward."""
        raise NotImplementedError

    def stored(self, layout: BlockLayout) -> BlockLayout:
        """What it stores of such a mask; at most, where that depends on which blocks are kept."""
        return layout

    def weight_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        """Bytes that the packing of such a matrix holds."""
        stored = self.stored(layout)
        return stored.value_bytes(itemsize) + stored.index_bytes()

    def build_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        """Bytes held at most until the packing can multiply, the packing included and one row block left out."""
        return self.weight_bytes(layout, itemsize)

    def backward_bytes(self, layout: BlockLayout, itemsize: int) -> int:
        """Bytes held for the backward pass beside the packing."""
        stored = self.stored(layout).transposed
        return stored.value_bytes(itemsize) + stored.index_bytes() + TransposedBlocks.held_bytes(stored)


BLOCK_KERNELS: Registry[type[BlockKernel]] = Registry("block kernel")


def build_block_kernel(spec: str) -> BlockKernel:
    """The block kernel that a spec such as ``reference`` or ``bsr:search=no`` names."""
    kind, parameters = BLOCK_KERNELS.resolve(spec)
    return kind(**parameters)
