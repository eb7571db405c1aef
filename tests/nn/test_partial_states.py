"""States that hold a part: a bias alone, an optimizer that has not stepped, what a mode of torch made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from blockshock import load_optimizer_state, optimizer_state, replace_linears
from blockshock.nn.method_linear import MethodLinear

ROWS = ("dense_single", "pruned-auto-magnitude", "block_shock-gathered")


def _model(row: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    assert replace_linears(model, row).replaced == ("0",)
    return model


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 16)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("row", ROWS)
def test_a_bias_alone_is_loaded_where_strict_is_off(row: str) -> None:
    model, bias = _model(row), torch.full((16,), 7.0)
    layer = model[0]
    assert isinstance(layer, MethodLinear)
    weight = layer.to_linear().weight.detach().clone()
    found = model.load_state_dict({"0.bias": bias}, strict=False)
    assert "0.weight" in found.missing_keys
    assert found.unexpected_keys == []
    assert torch.equal(layer.to_linear().bias, bias)
    assert torch.equal(layer.to_linear().weight, weight)
    x = torch.randn(3, 16)
    torch.testing.assert_close(model(x), layer.to_linear()(x))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*0\.weight"):
        model.load_state_dict({"0.bias": bias})


@pytest.mark.parametrize("row", ROWS)
def test_a_state_from_before_the_first_step_is_loaded_as_none(row: str) -> None:
    first = _model(row)
    model = copy.deepcopy(first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    saved, weights = optimizer_state(model, optimizer), copy.deepcopy(model.state_dict())
    for _ in range(3):
        _step(model, optimizer)
    load_optimizer_state(model, optimizer, saved)
    model.load_state_dict(weights)
    assert not optimizer.state
    _step(model, optimizer)
    _step(first, torch.optim.AdamW(first.parameters(), lr=0.1))
    assert all(map(torch.equal, model.state_dict().values(), first.state_dict().values()))


def test_a_parameter_without_a_state_loses_what_it_had() -> None:
    model = _model("dense_single")
    weight, bias = model.parameters()
    optimizer = torch.optim.AdamW([weight, bias], lr=0.1)
    bias.requires_grad_(False)
    _step(model, optimizer)
    saved = optimizer_state(model, optimizer)
    bias.requires_grad_(True)
    _step(model, optimizer)
    load_optimizer_state(model, optimizer, saved)
    assert [one in optimizer.state for one in (weight, bias)] == [True, False]


def test_options_that_are_tensors_are_copied_both_ways() -> None:
    model = _model("dense_single")
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    _step(model, optimizer)
    saved = optimizer_state(model, optimizer)
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert float(saved["groups"][0]["lr"]) == pytest.approx(0.1)
    other = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.3))
    load_optimizer_state(model, other, saved)
    assert float(other.param_groups[0]["lr"]) == pytest.approx(0.1)
    other.param_groups[0]["lr"].fill_(7.0)
    assert float(saved["groups"][0]["lr"]) == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize("row", ROWS)
def test_a_pass_without_numbers_leaves_nothing_behind(row: str) -> None:
    """As estimators of memory and of operations make one."""
    model = _model(row)
    model.load_state_dict(model.state_dict())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.empty(2, 16))
    x = torch.randn(3, 16)
    y = model(x)
    assert type(y) is torch.Tensor
    layer = model[0]
    assert isinstance(layer, MethodLinear)
    torch.testing.assert_close(y, layer.to_linear()(x))
