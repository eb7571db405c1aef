"""Averages of a model's weights, by torch's AveragedModel or by hand, are those of the dense model, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from blockshock import BlockShockLinear
from blockshock.errors import StalePacking
from blockshock.ranks import Ranks

KINDS: list[dict[str, Any]] = [
    {"kernel": "gathered", "mask": "tile"},  # the parameter is the memory that multiplies
    {"kernel": "reference", "mask": "random"},
    {"kernel": "gathered", "mask": "1100", "storage": "masked"},
    {"kernel": "reference", "mask": "random", "storage": "masked", "dtype": torch.bfloat16},
    {"kernel": "gathered", "mask": "tile", "dtype": torch.bfloat16},
]


class _ByHand(nn.Module):
    """An average as many a training script writes it: parameters are averaged, buffers copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        for average, value in zip(self.module.parameters(), model.parameters(), strict=True):
            average.lerp_(value, 0.25)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)


AVERAGES: list[Callable[[nn.Module], Any]] = [
    AveragedModel,
    lambda model: AveragedModel(model, use_buffers=True),
    lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True),
    lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    _ByHand,
]


def _linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(64, 48)


def _average(make: Callable[[nn.Module], Any], kind: dict[str, Any]) -> None:
    dense = nn.Sequential(_linear(0))
    model = nn.Sequential(BlockShockLinear(_linear(0), **kind))
    of_dense, of_model = make(dense), make(model)
    layer, x = of_model.module[0], torch.ones(3, 64, dtype=kind.get("dtype"))
    for seed in range(1, 5):
        for each in (dense, model):
            each[0].load_state_dict(_linear(seed).state_dict())
            (of_dense if each is dense else of_model).update_parameters(each)
        with pytest.raises(StalePacking):
            layer(x)
        assert torch.equal(layer.weight, of_dense.module[0].weight)
        assert torch.equal(layer.bias, of_dense.module[0].bias)
        layer.refresh()
        layer.check()
        model[0].check()
    expected = BlockShockLinear(of_dense.module[0], **kind)
    assert torch.equal(layer(x), expected(x))
    assert torch.equal(model[0].weight, dense[0].weight)


def _averages() -> None:
    for make in AVERAGES:
        for kind in KINDS:
            _average(make, kind)


def test_averages_are_those_of_the_dense_model(cpu_ranks: Ranks) -> None:
    _averages()
    cpu_ranks.run(_averages)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_layer_shows_nothing_but_its_parameters(kind: dict[str, Any]) -> None:
    """What copies, broadcasts or casts a model's buffers would write to memory that multiplies."""
    layer = BlockShockLinear(_linear(0), **kind)
    halves = layer.layer.storages()
    assert not list(layer.buffers())
    assert len(list(layer.parameters())) == len(halves) + 1
    memory = {tensor.untyped_storage().data_ptr() for tensor in layer.layer.tensors()}
    assert memory >= {half.packed.values.untyped_storage().data_ptr() for half in halves}
