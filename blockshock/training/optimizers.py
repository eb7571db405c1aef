"""The optimizers of the training phase."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from blockshock.machine import torch_internals
from blockshock.registry import Registry, check_range

MOST = 1e6
"""Of a rate: far more than trains anything."""


@dataclass
class OptimizerKind:
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


OPTIMIZERS: Registry[type[OptimizerKind]] = Registry("optimizer")


def optimizer_of(spec: str) -> OptimizerKind:
    """The kind that a spec such as ``adamw:lr=1e-4`` names, with its rates."""
    kind, parameters = OPTIMIZERS.resolve(spec)
    return kind(**parameters)


def _fused(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel can do a whole SGD step: torch has none for DTensor."""
    return not any(torch_internals.local_of(parameter) is not parameter for parameter in parameters)


@OPTIMIZERS.register("sgd")
@dataclass
class SGD(OptimizerKind):
    states = 0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.SGD(held, lr=self.lr, weight_decay=self.weight_decay, fused=_fused(held))


@OPTIMIZERS.register("momentum")
@dataclass
class Momentum(OptimizerKind):
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
class AdamW(OptimizerKind):
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
