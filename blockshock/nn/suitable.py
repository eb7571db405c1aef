"""Whether a row can take an ``nn.Linear``, and what it takes beside its weights: the ranks and the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockshock.errors import BlockShockError, InputError
from blockshock.kernels import build_kernel
from blockshock.machine import Alone, Group, of_rank_0, ranks_of
from blockshock.matrices import Mask, PermutedMask, TensorWeights, WeightSource, check_2to4, nudge_zeros, settled
from blockshock.methods import Layer, Method, Promise, Row, Shape, Span, axis_of
from blockshock.nn.replaceable import check_replaceable
from blockshock.pruning import Inputs, mask_of
from blockshock.training import Training


def why_not(
    linear: nn.Linear, row: Row, ranks: Group, dtype: torch.dtype | None, name: str, frozen: bool = False
) -> str | None:
    """None if the row can take the linear, else a sentence that says why not. Allocates nothing of size.

    Args:
        dtype: of the products; None for the linear's own.
        name: of what is to take its place.
        frozen: it only goes forward.
    """
    try:
        check_replaceable(linear, name)
        weight = linear.weight
        source = TensorWeights(weight, linear.bias, of="this nn.Linear").cast(dtype or weight.dtype)
        row = row.completed(weight.device.type, both_ways=not frozen)
        training = None if frozen else Training(weight.dtype)
        for axis, spec in row.picks.items():
            if isinstance(spec, str) and (reason := axis_of(axis).unavailable(spec, weight.device, source.dtype)):
                return f"{axis} {spec}: {reason}"
        if reason := row.kind.unavailable(weight.device, source.dtype, differentiated=not frozen):
            return reason
        specs = {axis: spec for axis, spec in row.picks.items() if isinstance(spec, str)}
        size = (source.N, source.K, source.dtype.itemsize, ranks.size())
        shape = Shape(*size, training=training, parameters=row.parameters, picks=specs)
        row.kind.check(shape)
        layer = Layer(source, row.picks, training=training, ranks=ranks.size())
        return row.kind.unsuitable(layer) or _part_unsuitable(layer, *row.kind.part(shape, ranks.rank()))
    except BlockShockError as error:
        return str(error)


def _part_unsuitable(layer: Layer, rows: slice, columns: slice) -> str | None:
    """Why a kernel that takes the layer does not take the rows and columns that a rank holds of it."""
    spec, kept = layer.pick("kernel"), layer.kept
    if spec is None or kept is None:
        return None
    part = kept.part(rows, columns)
    reason = build_kernel(spec).unsuitable(part.N, part.K, layer.source.dtype, part)
    return f"kernel {spec}, of a rank's part ({part.N}, {part.K}): {reason}" if reason else None


def ranks_for(kind: type[Method], group: Any) -> Group:
    """The ranks of a layer of such a method. Raises InputError where a user's model takes something else for it."""
    if kind.instead:
        raise InputError(f"{kind.__name__} is no layer of ours: {kind.instead} puts it into a model")
    if kind.span == Span.GROUP:
        return ranks_of(group)
    if group is not None and ranks_of(group).size() > 1:
        raise InputError(f"{kind.__name__} runs on one device: leave group out, and each rank has a layer of its own")
    return Alone()


def flat_inputs(x: torch.Tensor, weight: torch.Tensor, ranks: Group) -> Inputs:
    """Calibration inputs (T, K), of rank 0, in the dtype of the parameters."""
    x_TK = of_rank_0(x.reshape(-1, x.shape[-1]), ranks)
    assert x_TK is not None
    calibration = x_TK.to(weight.dtype)
    return lambda: calibration


def needs_inputs(row: Row, device: str, frozen: bool = False) -> bool:
    """Whether what prunes looks at calibration inputs."""
    picks = row.completed(device, both_ways=not frozen).picks
    return any(isinstance(spec, str) and axis_of(axis).needs_inputs(spec) for axis, spec in picks.items())


def mask_axis(row: Row) -> str:
    """The axis of a row of own weights whose pick is what keeps them."""
    return next(axis for axis in row.kind.axes if axis_of(axis).holds_masks)


@dataclass(frozen=True)
class Settled:
    """A row for one weight, with the mask made that it comes to.

    Attributes:
        mask: of the first half, or of what is not pruned; None where the row has none.
        weight: W (N, K), or W′ where the row promises that, exact and in the dtype of the parameters.
    """

    row: Row
    mask: Mask | None
    weight: torch.Tensor


def settled_row(row: Row, source: WeightSource, weight: torch.Tensor, ranks: int, inputs: Inputs | None) -> Settled:
    """What a row comes to.

    Args:
        source: W in the dtype of the products.
        weight: W in that of the parameters.
        inputs: for the pruner, where it looks at some: W′ is its, or the mask.
    """
    if row.kind.promise == Promise.OWN_WEIGHTS:
        # Pruned before it is rounded, as a whole: all ranks then know all of the mask.
        layer = Layer(TensorWeights(weight), row.picks, inputs=inputs)
        own, known = row.kind.reference(layer, ranks), layer.kept
        assert own.mask is not None
        # A tile is what every W gets.
        mask = known if known is not None and known.tile is not None else settled(own.mask.ordered, source.device)
        mask = mask if layer.permutation is None else PermutedMask(mask, layer.permutation)
        own_NK = own.gather(slice(None))
        # A pruner is given zeros of W as the smallest normal number; one that it left alone is a zero again.
        left = (weight == 0) & (own_NK == nudge_zeros(weight))
        return Settled(Row(row.method, {**row.picks, mask_axis(row): mask}), mask, own_NK.where(~left, weight))
    picked = row.picks.get("mask")
    if picked is None:
        return Settled(row, None, weight)
    mask = picked if isinstance(picked, Mask) else mask_of(picked, source, inputs)
    if (mask.N, mask.K) != (source.N, source.K):
        raise InputError(f"the mask is for a ({mask.N}, {mask.K}) weight, this one is ({source.N}, {source.K})")
    check_2to4(mask)
    mask = settled(mask, source.device)
    return Settled(Row(row.method, {**row.picks, "mask": mask}), mask, weight)
