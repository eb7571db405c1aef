"""Clipping by the global norm of gradients that are spread over ranks, those of each parameter over its own."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist

from blockshock.errors import InputError
from blockshock.machine import Group, global_ranks, groups_of, torch_internals
from blockshock.registry import check_range
from blockshock.training.steps import split_over

Split = tuple[tuple[int, ...], ...]
"""The ranks of each group that a parameter is split over; none where it is replicated."""


@dataclass
class Part:
    """The gradients that are split in one way: over the groups, one dimension after the other."""

    groups: list[Group]
    device: torch.device
    grads: list[torch.Tensor] = field(default_factory=list)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[torch.Tensor] | torch.Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    group: Any = None,
) -> torch.Tensor:
    """Scale gradients so that their norm over all ranks is at most ``max_norm``; returns the norm before that.

    As ``torch.nn.utils.clip_grad_norm_``, for models with weights that are split over ranks: Block-Shock halves and
    sharded DTensors. What the parts of a parameter add to the norm is summed over the ranks that hold them, in
    float64, in one all-reduce for each way in which parameters are split; everything else is taken as replicated.
    Gradients of DTensors that are partial sums are summed first. All ranks of those groups call it together.

    Args:
        norm_type: the p of the p-norm, above zero; ``inf`` for the largest absolute value.
        error_if_nonfinite: raise where the norm is NaN or inf, before any gradient is scaled.
        foreach: False to scale one gradient at a time, not all of a device and dtype in one call.
        group: a process group or a DeviceMesh that all parameters lie in. Nothing needs it, for each parameter knows
            its ranks; where it is given, it is checked.

    Returns:
        The norm (), of the dtype of the gradients, as torch's.

    Raises:
        InputError: ``max_norm`` is negative or NaN, ``norm_type`` is not above zero, or a parameter is split over ranks
            outside of ``group``.
        RuntimeError: the norm is NaN or inf, and ``error_if_nonfinite``.
    """
    check_range(0, math.inf, max_norm=max_norm)
    p = _order(norm_type)
    held = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    # Of all parameters, with a gradient or without one: all ranks must find the same, in the same order.
    parts: dict[Split, Part] = {}
    for parameter in held:
        over = split_over(parameter)
        part = parts.setdefault(tuple(map(global_ranks, over)), Part(over, parameter.device))
        if parameter.grad is not None:
            part.grads.append(local_gradient(parameter))
    if group is not None:
        _check_within(parts, group)
    norm = _norm(parts.values(), p)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(
            f"the norm of order {p} of the gradients is {norm.item()}, so nothing was clipped; to scale by it all the "
            "same, pass error_if_nonfinite=False"
        )
    scale = (float(min(max_norm, sys.float_info.max)) / (norm + 1e-6)).clamp(max=1.0)
    _scale([grad for part in parts.values() for grad in part.grads], scale, foreach)
    return norm.to(_dtype([grad for part in parts.values() for grad in part.grads]))


def _dtype(grads: list[torch.Tensor]) -> torch.dtype:
    """That of torch's norm of these; without any, the default one."""
    found = [grad.dtype.to_real() for grad in grads]
    return reduce(torch.promote_types, found) if found else torch.get_default_dtype()


def _order(norm_type: Any) -> float:
    try:
        p = float(norm_type)
    except (TypeError, ValueError, OverflowError):
        p = math.nan
    if not p > 0:
        raise InputError(f"norm_type must be a number above zero, or inf, got {norm_type!r}; ranks go by group=")
    return p


def _check_within(splits: Iterable[Split], group: Any) -> None:
    allowed = {rank for one in groups_of(group) for rank in global_ranks(one)}
    for ranks in (ranks for split in splits for ranks in split):
        if not allowed.issuperset(ranks):
            raise InputError(
                f"a parameter is split over ranks {list(ranks)}, and group= has ranks {sorted(allowed)}: "
                "leave group= out, for each parameter knows its ranks"
            )


def local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a gradient; where it was left a partial sum, that is summed and kept."""
    grad: Any = parameter.grad
    placements = getattr(grad, "placements", None)
    if placements is None:
        return grad  # type: ignore[no-any-return]
    if any(placement.is_partial() for placement in placements):
        replicate = importlib.import_module("torch.distributed.tensor").Replicate()
        grad = grad.redistribute(placements=[replicate if one.is_partial() else one for one in placements])
        parameter.grad = grad
    return grad.to_local()


def _norm(parts: Iterable[Part], p: float) -> torch.Tensor:
    totals = [torch.zeros((), dtype=torch.float64)]
    for part in parts:
        total = _joined(part, p)
        for group in part.groups:
            total = _over_ranks(total, p, group)
        totals.append(total)
    every = torch.stack([total.to(totals[-1].device) for total in totals])
    return every.max() if math.isinf(p) else every.sum() ** (1 / p)


def _joined(part: Part, p: float) -> torch.Tensor:
    """The sum of the p-th powers of all elements, or the largest. In float64, so that splits make no difference."""
    norms = [
        torch.linalg.vector_norm(grad, p, dtype=torch.promote_types(grad.dtype, torch.float64))  # complex of complex
        for grad in part.grads
        if grad.numel()
    ]
    zero = torch.zeros((), dtype=torch.float64, device=part.device)
    every = torch.stack([zero, *(norm.to(part.device) for norm in norms)])
    return every.max() if math.isinf(p) else every.pow(p).sum()


def _over_ranks(total: torch.Tensor, p: float, group: Group) -> torch.Tensor:
    if not math.isinf(p):
        dist.all_reduce(total, group=group)
        return total
    # A backend's MAX may lose a NaN.
    both = torch.stack([total, total.isnan().double()])
    dist.all_reduce(both, op=dist.ReduceOp.MAX, group=group)
    return both[0].masked_fill(both[1] > 0, math.nan)


def _scale(grads: list[torch.Tensor], scale: torch.Tensor, foreach: bool | None) -> None:
    if foreach is False:
        for grad in grads:
            grad.mul_(scale.to(grad.device))
        return
    alike: dict[tuple[torch.device, torch.dtype, bool], list[torch.Tensor]] = {}
    for grad in grads:
        alike.setdefault((grad.device, grad.dtype, grad.is_sparse), []).append(grad)
    for (device, _, _), some in alike.items():
        torch_internals.scale_all_(some, scale.to(device))
