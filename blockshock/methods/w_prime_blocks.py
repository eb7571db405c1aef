"""W′ in place of W, of which only some square blocks are left: at high levels, more is skipped than 2:4 can.

Right is what is right for W′. What W′ loses against W is the quality of a row, and no failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from blockshock.kernels import BlockKernel, BlockLayout, build_block_kernel
from blockshock.matrices import MaskedWeights, Piece, WeightSource
from blockshock.methods.base import METHODS
from blockshock.methods.dense_single import Single
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.kinds import Promise, Role
from blockshock.methods.layer import Layer
from blockshock.methods.pieces import described
from blockshock.methods.product import Weight
from blockshock.pruning import block_choice
from blockshock.training import MaskedStorage

SECTOR_BYTES = 32
"""That memory hands out at a time."""


@METHODS.register("block_sparse")
class BlockSparse(Single):
    """The kept blocks of W on one device, in a block kernel's format; trained as a dense parameter under the mask.

    Attributes:
        otherwise: what is taken where it is not picked.
    """

    promise, role = Promise.OWN_WEIGHTS, Role.SUBJECT
    axes: ClassVar[tuple[str, ...]] = ("block_kernel", "block_mask")
    otherwise: ClassVar[dict[str, str]] = {"block_kernel": "reference", "block_mask": "blocks"}

    @classmethod
    def _kernel(cls, picks: Mapping[str, Any]) -> BlockKernel:
        return build_block_kernel(picks.get("block_kernel", cls.otherwise["block_kernel"]))

    def hold(self, layer: Layer, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        mask, kernel = layer.blocks, self._kernel(layer.picks)
        piece = Piece(layer.source, mask=mask)
        kernel.check(piece, mask.size)
        packed = kernel.pack(piece, mask.size, bias if adds_bias else None, layer.both_ways)
        self._kernel_name = kernel.name
        self._met = mask.kept_RC.any(0), mask.kept_RC.any(1), mask.size
        if layer.training is None:
            return packed
        return MaskedStorage(piece, packed, layer.training, layer.trained_bias(bias))

    def read(self) -> tuple[int, int]:
        *blocks, size = self._met
        columns, rows = (_in_sectors(one, size, self.dtype.itemsize) for one in blocks)
        return columns, rows

    @classmethod
    def reference(cls, layer: Layer, ranks: int) -> WeightSource:
        return MaskedWeights(layer.source, layer.blocks)

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        choice = block_choice(shape.picks.get("block_mask", cls.otherwise["block_mask"]))
        kernel = cls._kernel(shape.picks)
        layout = BlockLayout(shape.N, shape.K, choice.size, choice.count(shape.N, shape.K))
        both_ways = shape.backward or shape.training is not None
        backward = kernel.backward_bytes(layout, shape.itemsize) if both_ways else 0
        packed = kernel.weight_bytes(layout, shape.itemsize) + backward
        building = kernel.build_bytes(layout, shape.itemsize) + backward
        if shape.training is None:
            return WeightEstimate(packed, building)
        more = MaskedStorage.extra_bytes(shape.N, shape.K, shape.itemsize, shape.training, None)
        return WeightEstimate(packed + more, building + more, MaskedStorage.elements(shape.N * shape.K))

    @property
    def algorithm(self) -> str:
        return "; ".join(described(self._kernel_name, packed) for packed in self.packings())


def _in_sectors(blocks: torch.Tensor, size: int, itemsize: int) -> int:
    """Features in sectors of memory that kept blocks meet, of blocks of features: memory hands out no less."""
    each = SECTOR_BYTES // itemsize
    features = blocks.repeat_interleave(size)
    sectors = F.pad(features, (0, -len(features) % each)).view(-1, each).any(1)
    return min(each * int(sectors.sum()), len(features))


@METHODS.register("block_sparse_dense")
class BlockSparseDense(BlockSparse):
    """The ablation: W′ stored dense, with its zeros multiplied."""

    role = Role.ABLATION
    axes = ("block_mask",)
    otherwise: ClassVar[dict[str, str]] = {**BlockSparse.otherwise, "block_kernel": "dense"}
