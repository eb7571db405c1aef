"""Halves on one CPU multiply as the one matrix that they are, where a layer is small; all else is as of halves."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from counting import calls_of, run_in
from torch import nn

from blockshock import BlockShockLinear
from blockshock.errors import StalePacking
from blockshock.nn.method_linear import MethodLinear
from blockshock.ranks import Ranks


def make_linear(N: int = 48, K: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(K, N)


def make_x(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def trained(layer: nn.Module, steps: int = 3) -> list[torch.Tensor]:
    """Outputs, and gradients of x, of some steps."""
    optimizer, found = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), []
    for step in range(steps):
        x = make_x(step)
        y = layer(x)
        optimizer.zero_grad()
        y.square().sum().backward()
        optimizer.step()
        assert x.grad is not None
        found += [y.detach(), x.grad]
    return found


@pytest.mark.parametrize("mask", [None, "tile", "random"])
def test_it_computes_and_trains_as_a_linear(mask: str | None) -> None:
    linear = make_linear()
    layer = BlockShockLinear(copy.deepcopy(linear), mask=mask)
    assert layer.layer.joined
    torch.testing.assert_close(trained(layer), trained(linear), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.to_linear().weight, linear.weight, rtol=1e-4, atol=1e-5)
    layer.check()
    assert [tuple(half.parameter.shape) for half in layer.layer.storages()] == [(48, 32), (48, 32)]
    assert layer.layer.algorithm.endswith(", joined")


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_so_does_a_pruned_layer(kernel: str) -> None:
    layer = MethodLinear(make_linear(), f"pruned-{kernel}-tile_magnitude")
    linear = layer.to_linear()
    assert (layer.layer.joined is None) == (kernel == "reference")
    assert layer.layer.algorithm == "reference" + (", joined" if kernel == "auto" else "")
    kept = linear.weight != 0
    linear.weight.register_hook(lambda grad: grad * kept)
    torch.testing.assert_close(trained(layer), trained(linear), rtol=1e-4, atol=1e-5)
    layer.check()


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((48, 64), {"kernel": "gathered"}),
        ((48, 64), {"kernel": "reference", "mask": "random"}),
        ((48, 64), {"storage": "masked"}),
        ((1024, 68), {}),
    ],
    ids=str,
)
def test_halves_that_were_asked_for_and_those_of_large_layers_stay_two(
    shape: tuple[int, int], given: dict[str, Any]
) -> None:
    assert BlockShockLinear(make_linear(*shape), **given).layer.joined is None


def _stays() -> bool:
    return BlockShockLinear(make_linear()).layer.joined is None


def test_halves_on_two_ranks_stay_two(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_stays) == [True, True]


def test_it_runs_what_a_linear_runs() -> None:
    linear, x = make_linear(64), torch.randn(16, 64)
    layer = BlockShockLinear(copy.deepcopy(linear))
    layer(x)
    assert run_in(lambda: layer(x)) == run_in(lambda: linear(x))
    assert calls_of(lambda: layer(x)) < 120


def test_each_way_to_change_a_half_reaches_it() -> None:
    layer, x = BlockShockLinear(make_linear()), make_x()
    half, bias = layer.layer.storages()[1].parameter, layer.bias
    assert bias is not None
    for change in (half, bias):
        before = layer(x)
        with torch.no_grad():
            change.mul_(2)
        with pytest.raises(StalePacking):
            layer(x)
        layer.refresh()
        assert not torch.equal(layer(x), before)
        torch.testing.assert_close(layer(x), layer.to_linear()(x))
    layer.load_state_dict(make_linear().state_dict())
    torch.testing.assert_close(layer(x), make_linear()(x))


def test_check_finds_a_write_that_no_counter_sees() -> None:
    layer, x = BlockShockLinear(make_linear()), make_x()
    before = layer(x)
    layer.layer.storages()[1].parameter.data[3, 5] = 7.0
    assert torch.equal(layer(x), before)
    with pytest.raises(StalePacking, match=r"multiplies holds -?0\.\d+ at \(3, \d+\), not 7\.0 as the packing: call"):
        layer.check()
    layer.refresh()
    layer.check()
    torch.testing.assert_close(layer(x), layer.to_linear()(x))


def test_copies_have_one_of_their_own() -> None:
    layer, x = BlockShockLinear(make_linear()), make_x()
    before = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), before)
        with torch.no_grad():
            other.layer.storages()[0].parameter.mul_(2)
        other.refresh()
        torch.testing.assert_close(other(x), other.to_linear()(x))
        assert torch.equal(layer(x), before)


def test_it_is_counted_and_first_made_in_inference_mode_it_trains() -> None:
    layer = BlockShockLinear(make_linear())
    halves = sum(half.parameter.nbytes for half in layer.layer.storages())
    assert layer.layer.weight_bytes() >= 2 * halves
    with torch.no_grad():
        layer.layer.storages()[0].parameter.mul_(2)
    layer.refresh()
    with torch.inference_mode():
        layer(make_x())
    trained(layer)
    torch.testing.assert_close(layer(make_x()), layer.to_linear()(make_x()))
