"""Whether a row can take an ``nn.Linear``, and what it takes beside its weights: the ranks and the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockshock.errors import BlockShockError, InputError
from blockshock.kernels import build_kernel
from blockshock.machine import Alone, Group, meet, of_rank_0, ranks_of
from blockshock.matrices import Mask, PermutedMask, TensorWeights, WeightSource, check_2to4, mask_digest, settled
from blockshock.methods import Layer, Method, Promise, Row, Shape, Span, axis_of, parse_row
from blockshock.nn.arguments import check_options, check_x
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
        reason = row.kind.unsuitable(layer, **row.parameters)
        return reason or _part_unsuitable(layer, *row.kind.part(shape, ranks.rank()))
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


def needs_inputs(row: Row, device: str, frozen: bool = False) -> bool:
    """Whether what prunes looks at calibration inputs."""
    picks = row.completed(device, both_ways=not frozen).picks
    return any(isinstance(spec, str) and axis_of(axis).needs_inputs(spec) for axis, spec in picks.items())


def mask_axis(row: Row) -> str:
    """The axis of a row whose pick is what keeps its weights, or those of its first half."""
    return next(axis for axis in row.kind.axes if axis_of(axis).holds_masks)


@dataclass(frozen=True)
class Settled:
    """What a row comes to for one linear layer.

    Attributes:
        ranks: that it is on.
        row: with the mask in it, made.
        mask: of the first half, or of what is not pruned; None where the row has none.
        source: W and the bias, in the dtype of the products.
        weight: W (N, K), or W′ where the row promises that, exact and in the dtype of the parameters.
        bias: in that dtype too.
    """

    ranks: Group
    row: Row
    mask: Mask | None
    source: WeightSource
    weight: torch.Tensor
    bias: torch.Tensor | None

    def build(self, layer: Layer) -> Method:
        """The row's method for that layer, on these ranks."""
        return self.row.kind(layer, self.ranks, **self.row.parameters)


def settle(
    taker: nn.Module,
    linear: nn.Linear,
    row: str | Row,
    group: Any,
    *,
    dtype: torch.dtype | None,
    tokens: int,
    inputs: torch.Tensor | None,
    frozen: bool = False,
) -> Settled:
    """What a row comes to for rank 0's linear. Arguments and errors are those of ``MethodLinear``, and two more.

    Args:
        taker: what is to take the linear's place.
        frozen: it only goes forward.
    """
    check_options(dtype, tokens)
    picked, name = row if isinstance(row, Row) else parse_row(row), type(taker).__name__
    check_replaceable(linear, name)
    ranks = ranks_for(picked.kind, group)
    if inputs is not None:
        check_x(inputs, linear.in_features)
    row = picked.completed(linear.weight.device.type, both_ways=not frozen)
    building = f"the building of a {name} {_told(linear, row, dtype, tokens, inputs, frozen)}"
    meet(ranks, building)
    weight, bias = (of_rank_0(tensor, ranks) for tensor in (linear.weight, linear.bias))
    assert weight is not None
    source = TensorWeights(weight, bias, of="rank 0's nn.Linear").cast(dtype or weight.dtype)
    calibration = None if inputs is None else _flat_inputs(inputs, weight, ranks)
    mask = None
    if row.kind.promise == Promise.OWN_WEIGHTS:
        mask, weight = _own_weights(row, weight, ranks, calibration)
    elif (picked_mask := row.picks.get("mask")) is not None:
        mask = _made(picked_mask, source, calibration)
    if ranks.size() > 1 and any(isinstance(given, Mask) for given in row.picks.values()):
        assert mask is not None
        meet(ranks, f"{building} with mask {mask_digest(mask)}")
    if mask is not None:
        row = Row(row.method, {**row.picks, mask_axis(row): mask})
    return Settled(ranks, row, mask, source, weight, bias)


def _told(
    linear: nn.Linear,
    row: Row,
    dtype: torch.dtype | None,
    tokens: int,
    inputs: torch.Tensor | None,
    frozen: bool,
) -> str:
    """What has to be the same on all ranks of a layer, whose parts would otherwise be those of unlike layers."""
    weight, bias = linear.weight, linear.bias
    told = [
        f"a {'frozen' if frozen or not held.requires_grad else 'trained'} {what}"
        for held, what in ((weight, f"weight in {weight.dtype}"), (bias, "bias"))
        if held is not None
    ]
    told += [f"products in {dtype or weight.dtype}", f"tokens={tokens}"]
    told += [] if inputs is None else [f"inputs {tuple(inputs.shape)}"]
    return f"({linear.out_features}, {linear.in_features}) as {row.name} with {', '.join(told)}".replace("torch.", "")


def _flat_inputs(x: torch.Tensor, weight: torch.Tensor, ranks: Group) -> Inputs:
    """Calibration inputs (T, K), of rank 0, in the dtype of the parameters."""
    x_TK = of_rank_0(x.reshape(-1, x.shape[-1]), ranks)
    assert x_TK is not None
    calibration = x_TK.to(weight.dtype)
    return lambda: calibration


def _own_weights(row: Row, weight: torch.Tensor, ranks: Group, inputs: Inputs | None) -> tuple[Mask, torch.Tensor]:
    """The mask of W′, and W′. It is pruned before it is rounded, as a whole: all ranks then know all of the mask."""
    layer = Layer(TensorWeights(weight), row.picks, inputs=inputs)
    own, known = row.kind.reference(layer, ranks.size()), layer.kept
    assert own.mask is not None
    # A tile is what every W gets.
    mask = known if known is not None and known.tile is not None else settled(own.mask.ordered, weight.device)
    mask = mask if layer.permutation is None else PermutedMask(mask, layer.permutation)
    return mask, own.gather(slice(None))


def _made(picked: str | Mask, source: WeightSource, inputs: Inputs | None) -> Mask:
    """The mask that is picked."""
    mask = picked if isinstance(picked, Mask) else mask_of(picked, source, inputs)
    if (mask.N, mask.K) != (source.N, source.K):
        raise InputError(f"the mask is for a ({mask.N}, {mask.K}) weight, this one is ({source.N}, {source.K})")
    check_2to4(mask)
    return settled(mask, source.device)
