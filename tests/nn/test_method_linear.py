"""Rows of the table as layers: each does what a BlockShockLinear does, by the same class."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from learning import linear_of, optimizer_of, train, x_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import blockshock
from blockshock import BlockShockLinear, MethodLinear
from blockshock.errors import InputError, StalePacking
from blockshock.ranks import Ranks

ROWS = ("dense_single", "dense_tp_row", "dense_tp_col", "masked_split_dense", "block_shock-gathered")


def _linear(seed: int = 0, bias: bool = True) -> nn.Linear:
    return linear_of(slice(5, 9), seed, bias)


def _same_as_linear(row: str, bias: bool) -> None:
    """Output, conversion, gradients of what is read whole, and training, as the dense layer."""
    linear = _linear(bias=bias)
    layer = MethodLinear(linear, row)
    torch.testing.assert_close(layer(x_of()), linear(x_of()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x_of()).dtype == torch.float32
    back = layer.to_linear()
    assert torch.equal(back.weight, linear.weight)
    (layer.weight.square().sum() + (layer.bias.square().sum() if layer.bias is not None else 0)).backward()
    grads = [storage.parameter.grad for storage in layer.layer.storages()]
    torch.testing.assert_close(layer.layer.whole(grads, "gradients"), 2 * linear.weight.detach())  # type: ignore[arg-type]
    if bias:
        held: Any = layer.layer.bias
        torch.testing.assert_close(held.grad, 2 * linear.bias.detach()[layer.layer.rows])
        assert torch.equal(layer.bias, linear.bias)  # type: ignore[arg-type]
    for trained in (layer, back):
        train(trained, optimizer_of(trained), 3)
    torch.testing.assert_close(layer.to_linear().weight, back.weight)
    if bias:
        torch.testing.assert_close(layer.to_linear().bias, back.bias)
    layer.check()


def _all_the_same() -> None:
    for row in ROWS:
        for bias in (True, False):
            _same_as_linear(row, bias)


def test_each_row_is_the_linear_and_trains_like_it(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_all_the_same)


@pytest.mark.parametrize("row", ROWS)
def test_it_needs_no_process_group(row: str) -> None:
    _same_as_linear(row, bias=True)


def _saved(row: str) -> bytes:
    layer = MethodLinear(_linear(), row)
    optimizer = optimizer_of(layer)
    train(layer, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": layer.state_dict(), "optimizer": blockshock.optimizer_state(layer, optimizer)}, file)
    return file.getvalue()


def _resumed(file: bytes, row: str) -> torch.Tensor:
    saved = torch.load(io.BytesIO(file), weights_only=True)
    layer = MethodLinear(_linear(9), row)
    layer.load_state_dict({name: saved["model"][name] for name in layer.state_dict() if name in saved["model"]})
    optimizer = optimizer_of(layer)
    blockshock.load_optimizer_state(layer, optimizer, saved["optimizer"])
    train(layer, optimizer, 2, first=2)
    return layer.to_linear().weight.detach()


def test_a_state_goes_on_with_any_ranks_and_any_dense_row(cpu_ranks: Ranks) -> None:
    linear = _linear()
    train(linear, optimizer_of(linear), 4)
    for row, other in zip(ROWS, (*ROWS[1:], ROWS[0]), strict=True):
        on_two = cpu_ranks.run(_saved, row)[0]
        if "mask" in torch.load(io.BytesIO(on_two), weights_only=True)["model"]:
            other = row  # of another method the mask would be another
        for weight in (_resumed(on_two, row), *cpu_ranks.run(_resumed, on_two, other)):
            torch.testing.assert_close(weight, linear.weight.detach())


def test_frozen_flags_hooks_and_the_mode_come_along() -> None:
    linear, called = _linear().eval(), []
    linear.weight.requires_grad_(False)
    linear.register_forward_hook(lambda module, args, y: called.append(type(module).__name__))
    for row in ROWS:
        layer = MethodLinear(linear, row)
        layer(x_of())
        assert not layer.training
        assert [parameter.requires_grad for parameter in layer.parameters()].count(True) == 1
        assert layer.to_linear().weight.requires_grad is False
    assert called == ["MethodLinear"] * len(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_copies_and_pickles(row: str) -> None:
    layer = MethodLinear(_linear(), row)
    y = layer(x_of())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x_of()), y)
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.5), 1)
        assert not torch.equal(twin(x_of()), y)
    assert torch.equal(layer(x_of()), y)


@pytest.mark.parametrize("row", ROWS)
def test_a_forgotten_refresh_is_told(row: str) -> None:
    layer = MethodLinear(_linear(), row, dtype=torch.bfloat16)  # the parameters are not what multiplies
    parameter = layer.layer.storages()[0].parameter
    with torch.no_grad():
        parameter.mul_(2)
    with pytest.raises(StalePacking, match="call refresh"):
        layer(x_of())
    layer.refresh()
    layer(x_of())
    parameter.data.view(-1)[:8] += 1.0
    with pytest.raises(StalePacking, match=r"(weight|half) 0: its packing's .* call refresh\(\)|where its mask drops"):
        layer.check()


@pytest.mark.parametrize("row", ROWS)
def test_products_in_bf16_train_float32_parameters(row: str) -> None:
    linear = _linear()
    layer = MethodLinear(linear, row, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    y = checkpoint(layer, x_of().requires_grad_(), use_reentrant=False)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), linear(x_of()), rtol=0.02, atol=0.02)
    assert torch.equal(layer.to_linear().weight, linear.weight)
    y.float().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def _on_one_device() -> list[str]:
    says = []
    layer = MethodLinear(_linear(dist.get_rank()), "dense_single")  # other values on each rank: no group is asked
    torch.testing.assert_close(layer(x_of()), _linear(dist.get_rank())(x_of()))
    pickle.dumps(layer)
    for row, group in (("dense_single", dist.group.WORLD), ("dtensor_row", None)):
        with pytest.raises(InputError) as error:
            MethodLinear(_linear(), row, group)
        says.append(str(error.value))
    with pytest.raises(InputError, match="would mix the halves, or other parts, of a weight on them"):
        nn.parallel.DistributedDataParallel(MethodLinear(_linear(), "dense_tp_row"))
    replicated = nn.parallel.DistributedDataParallel(layer)
    torch.testing.assert_close(replicated(x_of()), _linear(0)(x_of()))
    with pytest.raises(InputError, match="layer on 2 ranks cannot be pickled"):
        pickle.dumps(MethodLinear(_linear(), "dense_tp_col"))
    return says


def test_what_runs_on_one_device_takes_no_group(cpu_ranks: Ranks) -> None:
    one, other = cpu_ranks.run(_on_one_device)[0]
    assert "DenseSingle runs on one device: leave group out" in one
    assert "torch's own parallelize_module" in other


def test_a_block_shock_linear_is_one_of_them() -> None:
    short, long = BlockShockLinear(_linear(), kernel="gathered"), MethodLinear(_linear(), "block_shock-gathered")
    assert isinstance(short, MethodLinear)
    assert short.row.name.startswith("block_shock-gathered-")
    assert torch.equal(short(x_of()), long(x_of()))
    assert [name for name, _ in short.named_parameters()] == [name for name, _ in long.named_parameters()]
    long.load_state_dict(short.state_dict())


def test_a_state_of_another_kind_is_told() -> None:
    layer = MethodLinear(_linear(), "dense_single")
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"mask"'):
        layer.load_state_dict(BlockShockLinear(_linear()).state_dict())
    with pytest.raises(InputError, match="the weight of a MethodLinear cannot be another parameter"):
        layer.weight = nn.Parameter(torch.zeros(48, 64))  # type: ignore[misc]
    with pytest.raises(InputError, match="to the weight of"):
        layer.weight.zero_()
    with pytest.raises(InputError, match="a MethodLinear stays where it was built"):
        layer.bfloat16()
