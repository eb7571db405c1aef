"""A bias may change between a forward pass and its backward pass, as an ``nn.Linear``'s may; no weight may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from blockshock import BlockShockLinear, elementwise
from blockshock.errors import StalePacking
from blockshock.nn.method_linear import MethodLinear

ROWS: list[str | dict[str, Any]] = [
    "dense_single",
    "pruned-auto-magnitude",
    "pruned-gathered-1100",
    {},
    {"kernel": "gathered", "mask": "tile"},
    {"kernel": "gathered", "mask": "tile", "storage": "masked"},
    {"kernel": "reference", "mask": "random", "dtype": torch.bfloat16},
    {"dtype": torch.bfloat16},
]
"""Layers whose parameters are what multiplies, and whose are not, joined or not."""


def make_layer(row: str | dict[str, Any]) -> MethodLinear:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    return MethodLinear(linear, row) if isinstance(row, str) else BlockShockLinear(linear, **row)


def make_x() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@elementwise
class ByData(torch.optim.Optimizer):
    """Writes as optimizers did before there was ``no_grad``, and leaves no gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(0.1 * parameter.grad)
            parameter.grad = None


def _by_hand(layer: MethodLinear) -> None:
    with torch.no_grad():
        layer.bias.mul_(2)


def _by_its_own_optimizer(layer: MethodLinear) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([layer.bias], lr=0.5).step()


def _beside_frozen_weights(layer: MethodLinear) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter is layer.bias else None
    torch.optim.AdamW(layer.parameters(), lr=0.5, weight_decay=0.0).step()


@pytest.mark.parametrize("change", [_by_hand, _by_its_own_optimizer, _beside_frozen_weights])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bias_that_changed_is_not_needed_backward(
    row: str | dict[str, Any], change: Callable[[MethodLinear], None]
) -> None:
    layer = make_layer(row)
    wanted, x = layer.to_linear(), make_x()
    if change is _beside_frozen_weights:
        for parameter in layer.parameters():
            parameter.requires_grad_(parameter is layer.bias)
    y = layer(x).float().sum()
    change(layer)
    y.backward()
    torch.testing.assert_close(x.grad, wanted.weight.sum(0).expand(4, -1), rtol=0.02, atol=0.05)
    if change is _by_hand:
        layer.refresh()
    layer.check()
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)
    y = layer(x).float().sum()
    with torch.no_grad():
        layer.layer.storages()[0].parameter.mul_(2)
    with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
        y.backward()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_step_that_writes_weights_where_nothing_counts_is_taken_over(row: str | dict[str, Any]) -> None:
    layer = make_layer(row)
    y = layer(make_x()).float().sum()
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    ByData(layer.parameters()).step()
    with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
        y.backward()
    layer.check()
    torch.testing.assert_close(layer(make_x()).float(), layer.to_linear()(make_x()), rtol=0.02, atol=0.1)
