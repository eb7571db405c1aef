"""Whether a row can take an ``nn.Linear``, and what it takes beside its weights: the ranks and the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from blockshock.errors import BlockShockError, InputError
from blockshock.machine import Alone, Group, ranks_of
from blockshock.matrices import Mask, TensorWeights, WeightSource, build_mask, check_2to4, settled
from blockshock.methods import Layer, Method, Row, Shape, Span, axis_of
from blockshock.nn.replaceable import check_replaceable
from blockshock.training import Training


def why_not(linear: nn.Linear, row: Row, ranks: Group, dtype: torch.dtype | None, name: str) -> str | None:
    """None if the row can take the linear, else a sentence that says why not. Allocates nothing of size.

    Args:
        dtype: of the products; None for the linear's own.
        name: of what is to take its place.
    """
    try:
        check_replaceable(linear, name)
        weight = linear.weight
        source = TensorWeights(weight, linear.bias, of="this nn.Linear").cast(dtype or weight.dtype)
        row, training = row.completed(weight.device.type), Training(weight.dtype)
        for axis, spec in row.picks.items():
            if isinstance(spec, str) and (reason := axis_of(axis).unavailable(spec, weight.device, source.dtype)):
                return f"{axis} {spec}: {reason}"
        if reason := row.kind.unavailable(weight.device, source.dtype, differentiated=True):
            return reason
        specs = {axis: spec for axis, spec in row.picks.items() if isinstance(spec, str)}
        shape = (source.N, source.K, source.dtype.itemsize, ranks.size())
        row.kind.check(Shape(*shape, training=training, parameters=row.parameters, picks=specs))
        return row.kind.unsuitable(Layer(source, row.picks, training=training))
    except BlockShockError as error:
        return str(error)


def ranks_for(kind: type[Method], group: Any) -> Group:
    """The ranks of a layer of such a method. Raises InputError where a user's model takes something else for it."""
    if kind.instead:
        raise InputError(f"{kind.__name__} is no layer of ours: {kind.instead} puts it into a model")
    if kind.span == Span.GROUP:
        return ranks_of(group)
    if group is not None and ranks_of(group).size() > 1:
        raise InputError(f"{kind.__name__} runs on one device: leave group out, and each rank has a layer of its own")
    return Alone()


def with_its_mask(row: Row, source: WeightSource) -> Row:
    """The row with the mask made, and kept as it is now."""
    picked = row.picks.get("mask")
    if picked is None:
        return row
    mask = picked if isinstance(picked, Mask) else build_mask(picked, source)
    if (mask.N, mask.K) != (source.N, source.K):
        raise InputError(f"the mask is for a ({mask.N}, {mask.K}) weight, this one is ({source.N}, {source.K})")
    check_2to4(mask)
    return Row(row.method, {**row.picks, "mask": settled(mask)})
