"""Weights that change behind a layer's back are noticed, or found by ``check()``; none is multiplied in silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn
from torch.utils.checkpoint import checkpoint

from blockshock import BlockShockLinear
from blockshock.collectives import Alone
from blockshock.errors import StalePacking
from blockshock.kernels import Half
from blockshock.kernels.backward import DenseBackward
from blockshock.methods import METHODS, Layer
from blockshock.patterns import build_mask
from blockshock.ranks import Ranks
from blockshock.weights import GeneratedWeights

KINDS: list[dict[str, Any]] = [
    {"kernel": "gathered", "mask": "tile"},  # the parameter is the memory that multiplies
    {"kernel": "gathered", "mask": "tile", "storage": "masked"},
    {"kernel": "reference", "mask": "random"},
    {"kernel": "reference", "mask": "random", "dtype": torch.bfloat16},
]
"""Ways to hold a layer whose parameters are the packing's memory, and whose are not."""
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def _linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(64, 48)


def _x(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _source(seed: int = 0) -> GeneratedWeights:
    return GeneratedWeights(48, 64, torch.float32, "cpu", seed)


def _first_half(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer, BlockShockLinear)
    return layer.layer.storages()[0].parameter


def _backward_after_a_step(layer: nn.Module) -> None:
    """The fault: the step stands between a forward pass and its backward pass."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = _x()
    first, second = layer(x).float(), layer(x).float()
    second.square().sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="needed for gradient computation has been modified by an inplace operation"):
        first.square().sum().backward()
    x.grad = None
    layer(x).float().square().sum().backward()
    assert x.grad is not None


@kinds
def test_a_backward_pass_after_a_step_is_refused_as_a_linears_is(kind: dict[str, Any]) -> None:
    _backward_after_a_step(_linear())
    _backward_after_a_step(BlockShockLinear(_linear(), **kind))


def test_it_is_refused_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_backward_after_a_step_of_a_layer)


def _backward_after_a_step_of_a_layer() -> None:
    _backward_after_a_step(BlockShockLinear(_linear(), kernel="gathered"))


@kinds
def test_a_second_backward_pass_after_a_change_by_hand_is_refused(kind: dict[str, Any]) -> None:
    layer, x = BlockShockLinear(_linear(), **kind), _x()
    y = layer(x).float().square().sum()
    y.backward(retain_graph=True)
    with torch.no_grad():
        _first_half(layer).mul_(2)
    for _ in range(2):
        with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
            y.backward(retain_graph=True)
        layer.refresh()


def test_gradients_that_need_no_weight_come_after_a_step_too() -> None:
    for layer in (_linear(), BlockShockLinear(_linear())):
        y = layer(_x().detach()).square().sum()
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
        y.backward(retain_graph=True)
        for parameter in layer.parameters():
            assert parameter.grad is not None
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
        y.backward()


def test_halves_that_are_packed_rarely_go_back_by_what_went_forward() -> None:
    layer, x = BlockShockLinear(_linear(), storage="masked:every=2"), _x()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = layer(x).sum()
    layer(x).sum().backward()
    expected, x.grad = x.grad, None
    optimizer.step()
    before.backward()
    torch.testing.assert_close(x.grad, expected)
    before = layer(x).sum()
    optimizer.step()
    with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
        before.backward()


def test_frozen_weights_that_are_refreshed_are_noticed() -> None:
    source = _source()
    layer = Layer(source, build_mask("tile", source), "gathered", backward=True)
    method = METHODS.get("block_shock")(layer, Alone())
    y = method(_x()).sum()
    method.refresh(_source(1))
    with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
        y.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_are_made_again(reentrant: bool) -> None:
    linear = _linear()
    grads = []
    for layer in (linear, BlockShockLinear(linear)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(2):
            x = _x()
            checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
            optimizer.step()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
def test_a_compiled_layers_backward_pass_after_a_step_is_refused() -> None:
    for layer in (_linear(), BlockShockLinear(_linear(), kernel="gathered", mask="tile")):
        compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), _x()
        y = compiled(x).square().sum()
        compiled(x).square().sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def _set_data(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data * 2


def _twice(parameter: nn.Parameter) -> None:
    """The second memory may lie where the first one lay."""
    for _ in range(2):
        _set_data(parameter)


def _set(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.set_(parameter.detach() * 2)


def _from_vector(parameter: nn.Parameter) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector([parameter]).detach() * 2, [parameter])


OTHER_MEMORY = [_set_data, _twice, _set, _from_vector]


@kinds
@pytest.mark.parametrize("change", OTHER_MEMORY)
def test_other_memory_under_a_parameter_is_noticed(kind: dict[str, Any], change: Callable[..., None]) -> None:
    layer = BlockShockLinear(_linear(), **kind)
    x = _x()
    y = layer(x).sum()
    for parameter in (_first_half(layer), layer.bias):
        change(parameter)
        with pytest.raises(StalePacking, match=r"call refresh\(\)"):
            layer(_x())
        with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
            y.backward(retain_graph=True)
        layer.refresh()
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)


def test_another_parameter_is_noticed_and_followed() -> None:
    layer = BlockShockLinear(nn.Linear(64, 48, bias=False))
    half = layer.layer.storages()[0]
    y = torch.func.functional_call(layer, dict(layer.named_parameters()), _x())
    assert torch.equal(y, layer(_x()))
    other = {name: parameter.detach().clone() * 2 for name, parameter in layer.named_parameters()}
    with pytest.raises(StalePacking):
        torch.func.functional_call(layer, other, _x())
    half.parameter = nn.Parameter(half.parameter.detach() * 2)
    with pytest.raises(StalePacking):
        layer(_x())
    layer.refresh()
    layer(_x()).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer(_x()), layer.to_linear()(_x()))


def _found_by_check(**kind: Any) -> list[str]:
    """What ``check()`` says after writes that move no counter."""
    says = []
    layer = BlockShockLinear(_linear(), **kind)
    layer.check()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    y = layer(_x()).sum()
    layer.check()
    y.backward()
    shares_memory = _first_half(layer).data_ptr() == layer.layer.packings()[0].values.data_ptr()
    assert layer.bias is not None
    for parameter in (layer.bias,) if shares_memory else (_first_half(layer), layer.bias):
        parameter.data.view(-1)[-3:].mul_(2)
        layer(_x())
        with pytest.raises(StalePacking, match=r"call refresh\(\)") as error:
            layer.check()
        says.append(str(error.value))
        layer.refresh()
        layer.check()
    torch.testing.assert_close(layer(_x()).float(), layer.to_linear()(_x()), rtol=0.02, atol=0.05)
    return says


@kinds
def test_check_finds_what_no_counter_sees(kind: dict[str, Any]) -> None:
    *weight, bias = _found_by_check(**kind)
    assert re.search(r"half 0: its packing's bias holds -?0\.\d+ at \(\d+,\), not -?0\.\d+ as the parameter", bias)
    assert all("half 0: its packing's" in found and "as the parameter: call" in found for found in weight)


def _written_on_one_rank() -> list[str]:
    says = []
    layer = BlockShockLinear(_linear(), kernel="reference", mask="random", storage="masked")
    for writer, parameter in ((0, _first_half(layer)), (1, layer.bias)):
        layer.check()
        assert parameter is not None
        if layer.layer.group.rank() == writer:
            parameter.data.view(-1)[-3:].mul_(2)
        with pytest.raises(StalePacking) as error:
            layer.check()
        says.append(str(error.value))
        layer.load_state_dict(_linear().state_dict())
    return says


def test_check_tells_every_rank(cpu_ranks: Ranks) -> None:
    (weight, nothing), (other, bias) = cpu_ranks.run(_written_on_one_rank)
    assert "half 0: its packing's" in weight
    assert other == "rank 0 found a difference in this layer, and names it"
    assert re.match("the bias, the same on all ranks, holds .* as on rank 0: change it on every rank alike", bias)
    assert nothing == "rank 1 found a difference in this layer, and names it"


def test_check_finds_a_stale_backward_packing() -> None:
    layer = BlockShockLinear(_linear(), kernel="reference", mask="tile")
    for half in layer.layer.storages():  # as kernels have it that contract over K alone
        half.packed.backward = DenseBackward(Half(_source(), slice(0, 64), half.mask), "dense")
    layer.refresh()
    layer.check()
    _first_half(layer).data.mul_(2)
    with pytest.raises(StalePacking, match=r"half 0: its packing's backward\.packed\.w_NK holds"):
        layer.check()


def test_check_knows_halves_that_are_packed_rarely() -> None:
    layer = BlockShockLinear(_linear(), storage="masked:every=2")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(_x()).sum().backward()
        optimizer.step()
        layer.check()
    _first_half(layer).data.add_(1)
    with pytest.raises(StalePacking, match=r"a parameter holds 1\.0 where its mask drops"):
        layer.check()


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", ["gathered", "cusparselt:search=no"])
def test_a_backward_pass_after_a_step_is_refused_on_a_gpu(kernel: str, parameters: torch.dtype, storage: str) -> None:
    linear = nn.Linear(128, 64).to("cuda", parameters)
    layer = BlockShockLinear(linear, kernel=kernel, mask="tile", storage=storage, dtype=torch.bfloat16)
    x = torch.randn(16, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for called in (layer, torch.compile(layer, backend="aot_eager")):
        y = called(x).float().square().sum()
        called(x).float().square().sum().backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()
