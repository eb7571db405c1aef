"""The optimizers of the training phase, and clipping by the global norm of gradients that are spread over ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from blockshock.collectives import Group
from blockshock.registry import Registry, check_range
from blockshock.steps import is_split

MOST = 1e6
"""Of a rate: far more than trains anything."""


@dataclass
class Recipe:
    """How to build an optimizer for some parameters.

    Attributes:
        states: tensors of the size of a parameter that the optimizer keeps for each.
    """

    states: ClassVar[int]

    lr: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_range(0, MOST, lr=self.lr, weight_decay=self.weight_decay)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        raise NotImplementedError


OPTIMIZERS: Registry[type[Recipe]] = Registry("optimizer")


def build_recipe(spec: str) -> Recipe:
    """The recipe that a spec such as ``adamw:lr=1e-4`` names."""
    kind, parameters = OPTIMIZERS.resolve(spec)
    return kind(**parameters)


def _fused(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel can do a whole SGD step: torch has none for DTensor."""
    return not any(hasattr(parameter, "_local_tensor") for parameter in parameters)


@OPTIMIZERS.register("sgd")
@dataclass
class SGD(Recipe):
    states = 0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.SGD(held, lr=self.lr, weight_decay=self.weight_decay, fused=_fused(held))


@OPTIMIZERS.register("momentum")
@dataclass
class Momentum(Recipe):
    states = 1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, MOST, momentum=self.momentum)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held, decay = list(parameters), self.weight_decay
        return torch.optim.SGD(held, lr=self.lr, momentum=self.momentum, weight_decay=decay, fused=_fused(held))


@OPTIMIZERS.register("adamw")
@dataclass
class AdamW(Recipe):
    states = 2
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, MOST, eps=self.eps)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.AdamW(
            held, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True, capturable=held[0].is_cuda
        )


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[nn.Parameter] | nn.Parameter, max_norm: float, group: Group | None = None
) -> torch.Tensor:
    """Scale gradients so that their norm over all ranks is at most ``max_norm``; returns the norm before that.

    As ``torch.nn.utils.clip_grad_norm_``, for models with weights that are split over ranks: Block-Shock halves and
    sharded DTensors. The squares of their norms are summed in one all-reduce; everything else is taken as replicated.
    All ranks call it together.

    Args:
        group: the ranks that the weights are split over; the default group if there is one.

    Raises:
        InputError: ``max_norm`` is negative or NaN.
    """
    check_range(0, math.inf, max_norm=max_norm)
    given: Iterable[nn.Parameter] = [parameters] if isinstance(parameters, nn.Parameter) else parameters
    held = [parameter for parameter in given if parameter.grad is not None]
    device = held[0].device if held else torch.device("cpu")
    squared = _squared_norm([p for p in held if is_split(p)], device)
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(squared, group=group)
    norm = (squared + _squared_norm([p for p in held if not is_split(p)], device)).sqrt()
    scale = (float(min(max_norm, sys.float_info.max)) / (norm + 1e-6)).clamp(max=1.0)
    for parameter in held:
        assert parameter.grad is not None
        parameter.grad.mul_(scale)
    return norm


def _squared_norm(parameters: list[nn.Parameter], device: torch.device) -> torch.Tensor:
    local = [getattr(parameter.grad, "_local_tensor", parameter.grad) for parameter in parameters]
    # In float64, so that the norm does not depend on how the weights are split.
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64).square() for grad in local if grad is not None]
    return torch.stack(norms).sum() if norms else torch.zeros((), dtype=torch.float64, device=device)
