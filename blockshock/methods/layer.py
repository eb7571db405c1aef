"""What a method is given: the layer that it is to compute, and what was picked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from blockshock.errors import InputError, MaskError
from blockshock.kernels import FORWARD_ALONE, Format, PackedDense, build_format
from blockshock.matrices import BlockMask, Mask, PermutedWeights, Piece, WeightSource
from blockshock.methods.product import Weight
from blockshock.pruning import (
    Inputs,
    PrunedWeights,
    block_choice,
    block_mask,
    like,
    mask_of,
    permutation_of,
    prune,
    typical_mask,
)
from blockshock.training import DenseStorage, Training


@dataclass(frozen=True)
class Layer:
    """The layer a method is to compute.

    Attributes:
        source: W and the bias.
        picks: what was picked of each axis, a spec by the axis's name; a mask, and that of a pruner, may be one
            that is made already.
        tokens: rows of X that the layer will meet, for kernels that are chosen by measuring.
        backward: the layer will be differentiated, so that what backward needs is packed too.
        training: how its weights are trained; None to freeze them.
        inputs: draws calibration inputs, for pruners that look at them.
        ranks: that it will be on; None where that is not known.
    """

    source: WeightSource
    picks: Mapping[str, str | Mask] = field(default_factory=dict)
    tokens: int = 64
    backward: bool = False
    training: Training | None = None
    inputs: Inputs | None = None
    ranks: int | None = None

    def pick(self, axis: str) -> str | None:
        """The spec that was picked of that axis; None where none was."""
        picked = self.picks.get(axis)
        return None if isinstance(picked, Mask) else picked

    @property
    def format(self) -> Format | None:
        """In what the product is to be made; None for the dtype.

        Raises:
            InputError: weights in it are to be differentiated, or trained.
        """
        format = build_format(self.pick("format") or "plain")
        if format is not None and self.both_ways:
            raise InputError(
                f"format {format.name}: {FORWARD_ALONE}: take format plain for what is trained, or a FrozenLinear "
                "(replace_linears(…, frozen=True)), which is not"
            )
        return format

    @cached_property
    def mask(self) -> Mask | None:
        """The mask that was picked, made once; None where none was. Raises MaskError where it does not fit W."""
        picked = self.picks.get("mask")
        return mask_of(picked, self.source, self.inputs) if isinstance(picked, str) else picked

    @cached_property
    def kept(self) -> Mask | None:
        """The mask that was picked, or one that is to kernels as those of the pruner that was; None without either."""
        pruner, mask = self.picks.get("pruner"), self.picks.get("mask")
        if isinstance(pruner, str):
            return like(pruner, self.source)
        picked = mask if pruner is None else pruner
        return typical_mask(picked, self.source) if isinstance(picked, str) else picked and picked.ordered

    @cached_property
    def permutation(self) -> torch.Tensor | None:
        """The order of W's columns, int64 (K,), in which W′ is 2:4, searched for once; None where it is their own."""
        pruner = self.picks.get("pruner")
        if isinstance(pruner, Mask):
            return pruner.permutation
        return None if pruner is None else permutation_of(pruner, self.source, self.inputs)

    @cached_property
    def blocks(self) -> BlockMask:
        """The blocks that are kept, chosen once.

        Raises:
            InputError: they do not divide W.
            MaskError: what was picked is a mask of something else.
        """
        made = self.picks.get("block_mask", "blocks")
        if isinstance(made, str):
            return block_mask(made, self.source, self.inputs)
        if not isinstance(made, BlockMask):
            raise MaskError("the mask is none of blocks, as a block-sparse layer has it")
        return made

    @property
    def block_size(self) -> int:
        """Rows, and columns, of one."""
        made = self.picks.get("block_mask", "blocks")
        return made.size if isinstance(made, BlockMask) else block_choice(str(made)).size

    def pruned(self, rows: slice, columns: slice) -> PrunedWeights:
        """W′ of some rows and columns of W, permuted, pruned by themselves; once, and held as long as this is."""
        part = (*rows.indices(self.source.N), *columns.indices(self.source.K))
        if part not in self._pruned:
            spec, piece = self.pick("pruner") or "magnitude", Piece(self.source, columns, rows=rows)
            self._pruned[part] = prune(spec, piece, self.inputs, self.permutation)
        return self._pruned[part]

    @cached_property
    def _pruned(self) -> dict[tuple[int, ...], PrunedWeights]:
        return {}

    def pruned_piece(self, rows: slice, columns: slice) -> Piece:
        """The same as a piece; where the pruner's mask is made already, W is its W′."""
        made = self.picks.get("pruner")
        if isinstance(made, Mask):
            order, source = made.permutation, self.source
            source = source if order is None else PermutedWeights(source, order)
            return Piece(source, columns, made.ordered.part(rows, columns), rows)
        weights = self.pruned(rows, columns)
        return Piece(weights, mask=weights.mask)

    @property
    def both_ways(self) -> bool:
        """Whether weights are packed for both directions."""
        return self.backward or self.training is not None

    def weight(self, w: torch.Tensor, bias: torch.Tensor | None, adds_bias: bool = True) -> Weight:
        """A dense weight of this layer, or this rank's shard of one: frozen, or trained.

        Args:
            adds_bias: this rank's product does; otherwise the bias is trained beside it.
        """
        packed = PackedDense(w, bias if adds_bias else None)
        if self.training is None:
            return packed
        return DenseStorage(packed, self.training, self.trained_bias(bias))

    def trained_bias(self, bias: torch.Tensor | None) -> nn.Parameter | None:
        """The parameter that trains a bias."""
        if self.training is None or bias is None:
            return None
        return nn.Parameter(bias.to(self.training.parameter_dtype(bias.dtype), copy=True))
