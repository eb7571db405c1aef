"""What tests of layers train by: a linear whose weight holds zeros, an x, an optimizer, a few clipped steps."""

from __future__ import annotations

import torch
from torch import nn

import blockshock


def linear_of(zeros: slice, seed: int = 0, bias: bool = True) -> nn.Linear:
    """(48, 64), with zeros in these columns of row 3: they are kept, and must stay what they are."""
    torch.manual_seed(seed)
    linear = nn.Linear(64, 48, bias)
    with torch.no_grad():
        linear.weight[3, zeros] = 0.0
    return linear


def x_of(seed: int = 1, *shape: int) -> torch.Tensor:
    """(2, 3, 64), or of another shape."""
    return torch.randn(*(shape or (2, 3, 64)), generator=torch.Generator().manual_seed(seed))


def optimizer_of(layer: nn.Module) -> torch.optim.Optimizer:
    """SGD with all that it can have."""
    return torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    """So many steps; step ``first`` is the first one."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        layer(x_of(step)).square().mean().backward()
        blockshock.clip_grad_norm_(layer.parameters(), 0.05)
        optimizer.step()
