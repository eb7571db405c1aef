"""Block-Shock: W = W⁰ + W¹, two complementary 2:4 halves, each on its own rank; an all-reduce adds their outputs.

The first half alone is a pruned layer, which the second makes dense: with a pruner's mask the one that it would make.

With G = 2k ranks, rank r holds half r % 2 of column shard r // 2; one all-reduce sums all. With G = 1 both halves
are on one device. masked_split_dense is the same split with the zeros multiplied.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.machine import ColumnShard, Combine, Entry, Exit, Group, KeptColumns, Replicated, Summed, shard
from blockshock.matrices import (
    ColumnsOfHalves,
    Every,
    MaskedWeights,
    Piece,
    RowPatterns,
    WeightSource,
    check_2to4,
    check_complementary,
)
from blockshock.methods.base import METHODS
from blockshock.methods.estimate import Shape, WeightEstimate
from blockshock.methods.jointly import Jointly
from blockshock.methods.kinds import Role
from blockshock.methods.layer import Layer
from blockshock.methods.product import Weight, sum_of_products
from blockshock.pruning import is_pruners, pruning_bytes
from blockshock.training import Storage


@METHODS.register("block_shock")
class BlockShock(Jointly):
    """2:4 halves in a sparse kernel's format.

    Stores N·K/(2·shards) kept values a half, and their positions where the kernel needs them. Forward moves B·N
    elements in one all-reduce, as row tensor parallelism does. The bias joins one half's product.
    """

    axes: ClassVar[tuple[str, ...]] = ("kernel", "mask", "storage", "combine", "format")
    collectives = ("all_reduce", "all_reduce")
    part_name, joins, adds_parts = "half", True, True

    def __init__(self, layer: Layer, group: Group) -> None:
        super().__init__(layer, group)
        assert layer.mask is not None
        self.mask = layer.mask
        self.build(layer)

    def hold_own(self, layer: Layer) -> None:
        halves, is_first = self.pieces(layer), self.group.rank() == 0
        kernel, shared_N = self._kernel_for(layer, halves), self._shared_scales(layer.format, halves)
        # The bias is trained on every rank, and joins the product of one.
        biases = [layer.source.bias, *[None] * (len(halves) - 1)]
        held = [
            self._packed(layer, half, kernel, bias, is_first, shared_N)
            for half, bias in zip(halves, biases, strict=True)
        ]
        self.halves = nn.ModuleDict({_name(place, half): half for place, half in zip(self._places, held, strict=True)})
        self._mark_split()

    def conjugates(self, combine: Combine) -> tuple[Entry, Exit]:
        if kept := self._columns_of_halves():
            # Their gradients lie in disjoint columns: half the bytes of a sum.
            self.collectives = ("all_reduce", "all_gather")
            own, place = kept[self.group.rank() % 2], ColumnsOfHalves(*kept)
            return KeptColumns(combine, self.columns, self.K, own, place), Summed(combine)
        all_columns = self.columns == slice(0, self.K)
        return Replicated(combine) if all_columns else ColumnShard(combine, self.columns, self.K), Summed(combine)

    def _columns_of_halves(self) -> tuple[Every, Every] | None:
        """Which columns of a shard each half keeps, where its rows keep the same; None where they do not."""
        tile = self.mask.tile
        if tile is None or len(range(self.K)[self.columns]) % tile.shape[1] or not (tile == tile[0]).all():
            return None
        first, second = (RowPatterns(half[:1], self.N).patterns[0].kept for half in (tile, ~tile))
        return first, second

    @classmethod
    def part(cls, shape: Shape, rank: int) -> tuple[slice, slice]:
        cls.check(shape)
        return slice(0, shape.N), shard(shape.K, rank // 2, max(shape.ranks // 2, 1), "K", multiple=4)

    @property
    def _places(self) -> tuple[int, ...]:
        """Of this rank's halves among those of all."""
        return (0, 1) if self.ranks == 1 else (self.group.rank(),)

    def pieces(self, layer: Layer) -> list[Piece]:
        masks = [self.mask.complement() if place % 2 else self.mask for place in self._places]
        start, stop = self.columns.start, self.columns.stop
        return [Piece(layer.source, self.columns, mask.columns(start, stop)) for mask in masks]

    @classmethod
    def check(cls, shape: Shape) -> None:
        if shape.ranks > 1 and shape.ranks % 2:
            raise InputError(
                f"two halves need 1 rank or an even number, got {shape.ranks}: "
                f"try --ranks {shape.ranks - 1} or {shape.ranks + 1}"
            )
        shard(shape.K, 0, max(shape.ranks // 2, 1), "K", multiple=4)

    @classmethod
    def check_layer(cls, layer: Layer) -> None:
        assert layer.mask is not None
        check_2to4(layer.mask)
        check_complementary(layer.mask, layer.mask.complement())

    @classmethod
    def estimate(cls, shape: Shape) -> WeightEstimate:
        halves, shards = (2, 1) if shape.ranks == 1 else (1, shape.ranks // 2)
        K = shape.K // shards
        one = cls._estimate(shape.N, K, shape, None if shape.mask is None else shape.mask.columns(0, K))
        building, mask = (halves - 1) * one.steady + one.building, shape.picks.get("mask")
        if mask is not None and is_pruners(mask):
            building = max(building, pruning_bytes(mask, shape.N, shape.K, shape.K, shape.itemsize))
        return WeightEstimate(halves * one.steady, building, halves * one.trained)

    @classmethod
    def first_half(cls, layer: Layer) -> WeightSource | None:
        assert layer.mask is not None
        # In a format with the scales that it shares with the other.
        return MaskedWeights(cls.multiplied(layer, 1), layer.mask)

    @property
    def roundings(self) -> int:
        return super().roundings + max(self.group.size(), 2) - 1

    @property
    def grad_roundings(self) -> int:
        return 1 if isinstance(self.entry, KeptColumns) else max(self.group.size(), 2)

    def weights(self) -> list[Weight]:
        return [*self._modules["halves"]._modules.values()]  # type: ignore[list-item, union-attr]  # in fewer steps

    def multiply(self, x_BK: torch.Tensor, exit: Exit) -> torch.Tensor:
        return sum_of_products(x_BK, self.weights(), self.entry, exit)


def _name(place: int, half: Weight) -> str:
    """Of a half among those of all ranks, and of the order of its rows: no saved state is then taken for another's."""
    packed = half.packed if isinstance(half, Storage) else half
    return f"{place}_by_pattern" if packed.sorted_by_pattern else str(place)


@METHODS.register("masked_split_dense")
class MaskedSplitDense(BlockShock):
    """The ablation: the same halves stored dense, with their zeros multiplied. Stores N·K/shards a half."""

    role = Role.ABLATION
    axes = ("mask", "combine")
    otherwise: ClassVar[dict[str, str]] = {"kernel": "dense", "storage": "masked"}  # no kept values to store
