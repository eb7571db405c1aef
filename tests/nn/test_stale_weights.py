"""Weights that change behind a layer's back are noticed, or found by ``check()``; none is multiplied in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn
from torch.utils.checkpoint import checkpoint

from blockshock import BlockShockLinear
from blockshock.errors import StalePacking
from blockshock.machine.collectives import Alone
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer
from blockshock.ranks import Ranks

KINDS: list[dict[str, Any]] = [
    {"kernel": "gathered", "mask": "tile"},  # the parameter is the memory that multiplies
    {"kernel": "gathered", "mask": "tile", "storage": "masked"},
    {"kernel": "reference", "mask": "random"},
    {"kernel": "reference", "mask": "random", "dtype": torch.bfloat16},
    {"dtype": torch.bfloat16},  # joined
]
"""Ways to hold a layer whose parameters are the packing's memory, and whose are not."""
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
with_joined = pytest.mark.parametrize("kind", [*KINDS, {}], ids=str)
"""The same, and one whose bias is that memory too."""


def make_linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(64, 48)


def make_x(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def make_source(seed: int = 0) -> GeneratedWeights:
    return GeneratedWeights(48, 64, torch.float32, "cpu", seed)


def first_half(layer: nn.Module) -> nn.Parameter:
    assert isinstance(layer, BlockShockLinear)
    return layer.layer.storages()[0].parameter


def _backward_after_a_step(layer: nn.Module) -> None:
    """The fault: the step stands between a forward pass and its backward pass."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = make_x()
    first, second = layer(x).float(), layer(x).float()
    second.square().sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="needed for gradient computation has been modified by an inplace operation"):
        first.square().sum().backward()
    x.grad = None
    layer(x).float().square().sum().backward()
    assert x.grad is not None


@with_joined
def test_a_backward_pass_after_a_step_is_refused_as_a_linears_is(kind: dict[str, Any]) -> None:
    _backward_after_a_step(make_linear())
    _backward_after_a_step(BlockShockLinear(make_linear(), **kind))


def test_it_is_refused_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_backward_after_a_step_of_a_layer)


def _backward_after_a_step_of_a_layer() -> None:
    _backward_after_a_step(BlockShockLinear(make_linear(), kernel="gathered"))


@with_joined
def test_a_second_backward_pass_after_a_change_by_hand_is_refused(kind: dict[str, Any]) -> None:
    layer, x = BlockShockLinear(make_linear(), **kind), make_x()
    y = layer(x).float().square().sum()
    y.backward(retain_graph=True)
    with torch.no_grad():
        first_half(layer).mul_(2)
    for _ in range(2):
        with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
            y.backward(retain_graph=True)
        layer.refresh()


def test_gradients_that_need_no_weight_come_after_a_step_too() -> None:
    for layer in (make_linear(), BlockShockLinear(make_linear())):
        y = layer(make_x().detach()).square().sum()
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
        y.backward(retain_graph=True)
        for parameter in layer.parameters():
            assert parameter.grad is not None
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
        y.backward()


def test_halves_that_are_packed_rarely_go_back_by_what_went_forward() -> None:
    layer, x = BlockShockLinear(make_linear(), storage="masked:every=2"), make_x()
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


def test_frozen_weights_that_are_written_are_noticed() -> None:
    source = make_source()
    layer = Layer(source, {"kernel": "gathered", "mask": "tile"}, backward=True)
    method = METHODS.get("block_shock")(layer, Alone())
    y = method(make_x()).sum()
    for packed in method.packings():
        packed.write(packed.values + 1)
    with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
        y.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_are_made_again(reentrant: bool) -> None:
    linear = make_linear()
    grads = []
    for layer in (linear, BlockShockLinear(linear)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(2):
            x = make_x()
            checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
            optimizer.step()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
def test_a_compiled_layers_backward_pass_after_a_step_is_refused() -> None:
    for layer in (make_linear(), BlockShockLinear(make_linear(), kernel="gathered", mask="tile")):
        compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), make_x()
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


@with_joined
@pytest.mark.parametrize("change", OTHER_MEMORY)
def test_other_memory_under_a_parameter_is_noticed(kind: dict[str, Any], change: Callable[..., None]) -> None:
    layer = BlockShockLinear(make_linear(), **kind)
    x = make_x()
    y = layer(x).sum()
    for parameter in (first_half(layer), layer.bias):
        change(parameter)
        with pytest.raises(StalePacking, match=r"call refresh\(\)"):
            layer(make_x())
        with pytest.raises(StalePacking, match="between a forward pass and its backward pass"):
            y.backward(retain_graph=True)
        layer.refresh()
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)


@with_joined
def test_what_only_moves_goes_on(kind: dict[str, Any]) -> None:
    """As where a spawned process is handed the model: what both are to read goes to memory that they share."""
    layer = BlockShockLinear(make_linear(), **kind)
    x = make_x()
    y = layer(x)
    for parameter in layer.parameters():
        parameter.untyped_storage().share_memory_()
    assert torch.equal(layer(x), y)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).sum().backward()
    optimizer.step()
    assert not torch.equal(layer(x), y)
    torch.testing.assert_close(layer(x).float(), layer.to_linear()(x), rtol=0.02, atol=0.05)
    _set_data(first_half(layer))
    with pytest.raises(StalePacking, match=r"call refresh\(\)"):
        layer(x)


def test_another_parameter_is_noticed_and_followed() -> None:
    layer = BlockShockLinear(nn.Linear(64, 48, bias=False))
    half = layer.layer.storages()[0]
    y = torch.func.functional_call(layer, dict(layer.named_parameters()), make_x())
    assert torch.equal(y, layer(make_x()))
    other = {name: parameter.detach().clone() * 2 for name, parameter in layer.named_parameters()}
    with pytest.raises(StalePacking):
        torch.func.functional_call(layer, other, make_x())
    half.parameter = nn.Parameter(half.parameter.detach() * 2)
    with pytest.raises(StalePacking):
        layer(make_x())
    layer.refresh()
    layer(make_x()).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer(make_x()), layer.to_linear()(make_x()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@with_joined
def test_a_compiled_step_packs_too(kind: dict[str, Any]) -> None:
    weights = []
    for layer in (make_linear(), BlockShockLinear(make_linear(), **kind)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
        step = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend="aot_eager")
        for _ in range(2):
            optimizer.zero_grad()
            layer(make_x()).float().square().mean().backward()
            step()
        weights.append(layer.weight.clone())
    layer.check()
    torch.testing.assert_close(*weights, rtol=0.02, atol=1e-4)


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
