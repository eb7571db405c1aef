"""The weight of a layer, read as one dense matrix: by torch's own modules, with gradients, and without writes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune

from blockshock import BlockShockLinear
from blockshock.errors import InputError
from blockshock.ranks import Ranks


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (4, 64)), generator=torch.Generator().manual_seed(1))


def _attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.MultiheadAttention(64, 4, batch_first=True)


def _encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)


def _stack() -> nn.Module:
    return nn.TransformerEncoder(_encoder(), 2)  # type: ignore[arg-type]


def _replace(model: nn.Module) -> None:
    """Put a layer in the place of every nn.Linear."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, BlockShockLinear(child))


def _called(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model(x, x, x)[0] if hasattr(model, "in_proj_weight") else model(x)


def _reads_its_weight(make: Callable[[], nn.Module]) -> None:
    """A module of torch that reads ``.weight`` of what it holds, beside the dense one: training, frozen and eval."""
    dense, model = make(), make()
    _replace(model)
    assert any(isinstance(module, BlockShockLinear) for module in model.modules())
    for step in range(2):
        results = []
        for trained in (dense, model):
            x = (_x(2, 3, 64) + step).requires_grad_()
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
            optimizer.zero_grad()
            y = _called(trained, x)
            y.square().sum().backward()
            torch.nn.utils.clip_grad_value_(trained.parameters(), 0.01)
            optimizer.step()
            results += [[y, x.grad]]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = [_called(trained.eval(), _x(2, 3, 64)) for trained in (dense, model)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(_called(model, _x(2, 3, 64)), _called(dense, _x(2, 3, 64)), rtol=1e-4, atol=1e-5)
    layers = [module for module in model.modules() if isinstance(module, BlockShockLinear)]
    olds = [module for module in dense.modules() if isinstance(module, nn.Linear)]
    for layer, old in zip(layers, olds, strict=True):
        torch.testing.assert_close(layer.weight.clone(), old.weight, rtol=1e-4, atol=1e-5)
        assert (old.weight - type(old)(old.in_features, old.out_features).weight).abs().max() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")  # by the compiler
def test_a_compiled_module_reads_its_weight() -> None:
    dense, model = _attention(), _attention()
    _replace(model)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(_called(compiled, _x(2, 3, 64)), _called(dense, _x(2, 3, 64)))


@pytest.mark.parametrize("make", [_attention, _encoder, _stack])
def test_torchs_modules_read_its_weight(make: Callable[[], nn.Module]) -> None:
    _reads_its_weight(make)


def _on_ranks() -> None:
    for make in (_attention, _encoder):
        _reads_its_weight(make)


def test_torchs_modules_read_its_weight_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_on_ranks)


def _spread() -> None:
    """fully_shard over two replicas of a layer of one rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("replicas", "halves"))
    layer = BlockShockLinear(_linear(), mesh["halves"])
    fully_shard(layer, mesh=mesh["replicas"])
    with pytest.raises(InputError, match=r"as shards, to which no gradient of its weight would come: call unshard\(\)"):
        _ = layer.weight
    with torch.no_grad():
        assert torch.equal(layer.weight, _linear().weight)
    layer.unshard()
    assert torch.equal(layer.weight, _linear().weight)
    assert layer.weight.requires_grad


def test_a_weight_that_is_spread_over_replicas_is_gathered_first(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_spread)


@pytest.mark.parametrize("kind", [{"storage": "masked"}, {"kernel": "reference", "mask": "random"}], ids=str)
def test_gradients_through_the_weight_reach_the_halves(kind: dict[str, Any]) -> None:
    linear = _linear()
    layer = BlockShockLinear(linear, **kind)
    assert torch.equal(layer.weight, linear.weight)
    for weight in (linear.weight, layer.weight):
        (weight.square() * _x(48, 64)).sum().backward()
    halves = layer.layer.storages()
    grads = [half.parameter.grad for half in halves]
    assert all(grad is not None for grad in grads)
    torch.testing.assert_close(layer.layer.whole(grads, "gradients"), linear.weight.grad)  # type: ignore[arg-type]


WRITES: list[Callable[[torch.Tensor], Any]] = [
    lambda w: w.mul_(2),
    lambda w: w.t().mul_(2),
    lambda w: w.data.copy_(torch.zeros(48, 64)),
    lambda w: w.detach()[0].zero_(),
    lambda w: w.__setitem__(0, 0.0),
    lambda w: w.__imul__(2),
    lambda w: setattr(w, "data", torch.zeros(48, 64)),
    lambda w: torch.add(w, 1, out=w),
    lambda w: torch._foreach_mul_([w], 2),
    lambda w: nn.init.zeros_(w),
    lambda w: nn.init.xavier_uniform_(w),
    lambda w: next(iter(w.chunk(2))).fill_(1),
    lambda w: nn.Parameter(w),
]


@pytest.mark.parametrize("index", range(len(WRITES)))
def test_a_write_to_the_weight_that_was_read_is_refused(index: int) -> None:
    layer = BlockShockLinear(_linear())
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(InputError, match="to the weight of a replaced layer, which"),
        ):
            WRITES[index](layer.weight)
    assert torch.equal(layer.weight, _linear().weight)


def test_the_weight_is_read_like_any_tensor() -> None:
    layer, linear = BlockShockLinear(_linear()), _linear()
    weight = layer.weight
    assert type(weight.clone()) is type(weight + 1) is torch.Tensor
    assert torch.zeros(48, 64).add_(weight).equal(linear.weight)
    assert weight.clone().mul_(2).equal(2 * linear.weight)
    assert (weight.shape, weight.dtype, weight.device) == (linear.weight.shape, torch.float32, linear.weight.device)
    assert "WholeWeight" in repr(weight)
    file = io.BytesIO()
    torch.save({"weight": weight.detach()}, file)
    file.seek(0)
    for own in (copy.deepcopy(weight.detach()), torch.load(file, weights_only=True)["weight"]):
        assert type(own) is torch.Tensor
        own.mul_(2)
        assert torch.equal(own, 2 * linear.weight)
    assert torch.equal(layer.weight, linear.weight)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_another_parameter_in_their_place_is_refused(name: str) -> None:
    layer = BlockShockLinear(_linear())
    with pytest.raises(InputError, match=f"the {name} of a BlockShockLinear cannot be another parameter"):
        setattr(layer, name, nn.Parameter(torch.zeros(48, 64)))


def test_what_would_rewrite_the_weight_of_a_layer_is_refused() -> None:
    layer = BlockShockLinear(_linear())
    with pytest.raises((InputError, TypeError)):
        prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(ValueError, match="does not have a parameter"):
        parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(_x()), _linear()(_x()))
