"""Layers, and the linears they came from, can be copied, pickled and saved whole; a copy trains by itself."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_a_gpu
from inner_pytest import ROOT
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

from blockshock import BlockShockLinear, BlockShockParallel
from blockshock.errors import InputError, StalePacking
from blockshock.nn.old_names import MOVED
from blockshock.ranks import Ranks
from blockshock.training.steps import split_over

KINDS: list[dict[str, Any]] = [
    {"kernel": "gathered", "mask": "tile"},
    {"kernel": "reference", "mask": "random", "dtype": torch.bfloat16},
    {"kernel": "gathered", "mask": "1100", "storage": "masked:every=2"},
]


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def _x() -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, _pickled, _saved]
copies = pytest.mark.parametrize("copied", COPIES)


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(_x()).float().square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@copies
def test_a_copy_is_the_layer_and_trains_by_itself(copied: Callable[[nn.Module], Any], kind: dict[str, Any]) -> None:
    layer = BlockShockLinear(_linear(), **kind)
    _train(layer)
    model = nn.Sequential(layer, nn.ReLU())
    model[0].bias.requires_grad_(False)
    twin = copied(model)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    before = layer.to_linear().weight
    assert torch.equal(twin[0].to_linear().weight, before)
    twin[0].check()
    _train(twin)
    twin[0].check()
    assert torch.equal(layer.to_linear().weight, before)
    layer.check()
    _train(model)
    assert torch.equal(twin[0].to_linear().weight, layer.to_linear().weight)
    assert torch.equal(twin(_x()), model(_x()))


@pytest.mark.parametrize("mask", ["magnitude", "tile_magnitude", "random"])
def test_a_mask_stays_as_it_was_when_the_linear_goes_on(mask: str) -> None:
    linear = _linear()
    layer = BlockShockLinear(linear, kernel="reference", mask=mask)
    before, state = layer.to_linear(), layer.state_dict()
    with torch.no_grad():
        linear.weight.copy_(linear.weight.flip(1))
    assert torch.equal(layer.state_dict()["mask"], state["mask"])
    for twin in (copy.deepcopy(layer), _pickled(layer)):
        twin.load_state_dict(state)
        assert torch.equal(twin.to_linear().weight, before.weight)
        assert torch.equal(twin.state_dict()["mask"], state["mask"])


@copies
def test_the_linear_that_was_replaced_is_copied_too(copied: Callable[[nn.Module], Any]) -> None:
    linear = _linear()
    layer = BlockShockLinear(linear)
    twin = copied(linear)
    assert torch.equal(twin.weight, linear.weight)
    twin(_x()).sum().backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    layer(_x()).sum().backward()
    with pytest.raises(InputError, match="that a BlockShockLinear replaced"):
        torch.optim.SGD(linear.parameters(), lr=0.1).step()


def test_a_layer_is_not_loaded_onto_another_device() -> None:
    file = io.BytesIO()
    torch.save(BlockShockLinear(_linear()), file)
    file.seek(0)
    with pytest.raises(
        InputError, match="a layer that was built on cpu cannot be loaded onto meta: load its state_dict"
    ):
        torch.load(file, weights_only=False, map_location="meta")


@copies
@pytest.mark.parametrize("kind", KINDS[:1], ids=str)
def test_a_copys_parameters_are_the_memory_that_multiplies_too(
    copied: Callable[[nn.Module], Any], kind: dict[str, Any]
) -> None:
    layer = BlockShockLinear(_linear(), **kind)
    average = copied(layer)
    _train(layer)
    assert average.layer.weight_bytes() == layer.layer.weight_bytes()
    for mine, other in zip(average.layer.storages(), layer.layer.storages(), strict=True):
        mine.parameter.data.copy_(other.parameter)
    average.check()
    torch.testing.assert_close(average(_x()) - average.bias, layer(_x()) - layer.bias)


@copies
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
def test_a_compiled_copys_backward_pass_after_a_step_is_refused(copied: Callable[[nn.Module], Any]) -> None:
    layer = copied(BlockShockLinear(_linear(), kernel="gathered", mask="tile"))
    compiled, x = torch.compile(layer, backend="aot_eager"), _x().requires_grad_()
    y = compiled(x).square().sum()
    compiled(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_an_average_of_a_model_follows_it() -> None:
    model = nn.Sequential(BlockShockLinear(_linear()))
    average = torch.optim.swa_utils.AveragedModel(model)
    _train(model)
    for _ in range(2):
        average.update_parameters(model)
        for module in average.modules():
            if isinstance(module, BlockShockLinear):
                module.refresh()
    assert torch.equal(average(_x()), model(_x()))


def _copies_of_a_group() -> None:
    linear = nn.Sequential(_linear())
    model = nn.Sequential(_linear())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"0": BlockShockParallel(input_layouts=Shard(1), output_layouts=Shard(1))})
    twin = copy.deepcopy(model)
    x = _x().view(1, 4, 64)
    mine = x.chunk(2, dim=1)[dist.get_rank()]
    for half in (model[0].layer.storages()[0], twin[0].layer.storages()[0]):
        assert [group.size() for group in split_over(half.parameter)] == [2]
        half.parameter = nn.Parameter(half.parameter.detach().clone())
    for module in (model[0], twin[0]):
        module.refresh()
        assert [group.size() for group in split_over(module.layer.storages()[0].parameter)] == [2]
    for trained, given in ((linear, x), (twin, mine)):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        trained(given).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(twin[0].to_linear().weight, linear[0].weight)
    assert torch.equal(model[0].to_linear().weight, _linear().weight)


def _of_a_group() -> str:
    _copies_of_a_group()
    layer = BlockShockLinear(_linear())
    copy.deepcopy(layer)
    with pytest.raises(InputError) as error:
        _pickled(nn.Sequential(layer))
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    twin = _pickled(BlockShockLinear(_linear(), alone))
    assert torch.equal(twin(_x()), BlockShockLinear(_linear(), alone)(_x()))
    return str(error.value)


def test_a_layer_of_several_ranks_is_saved_by_its_state(cpu_ranks: Ranks) -> None:
    for says in cpu_ranks.run(_of_a_group):
        assert says.startswith("a layer on 2 ranks cannot be pickled, for its process group is this run's: save its")


def _in_inference_mode() -> None:
    with torch.inference_mode():
        built = BlockShockLinear(_linear())
        y = built(_x())
        twin = copy.deepcopy(built)
        twin.load_state_dict(built.state_dict())
        built.check()
        torch.testing.assert_close(twin(_x()), y)
        torch.testing.assert_close(built.to_linear()(_x()), y)
    trained = BlockShockLinear(_linear())
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(trained(_x()), trained.to_linear()(_x()))
            torch.testing.assert_close(copy.deepcopy(trained)(_x()), trained(_x()))
            trained.load_state_dict(_linear().state_dict())
            trained.check()
        _train(trained)
    with torch.no_grad():
        torch.testing.assert_close(built(_x()), y)


def test_inference_mode_takes_layers_and_makes_them(cpu_ranks: Ranks) -> None:
    _in_inference_mode()
    cpu_ranks.run(_in_inference_mode)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("kernel", "mask", "storage"),
    [
        ("cusparselt:search=no", "tile", "compressed"),
        ("cusparselt:search=no", "tile_random", "compressed"),
        ("cusparselt:search=no", "1100", "masked"),
        ("gathered", "tile", "compressed"),
    ],
)
def test_copies_and_checks_on_a_gpu(kernel: str, mask: str, storage: str, parameters: torch.dtype) -> None:
    linear = nn.Linear(128, 64).to("cuda", parameters)
    x = torch.randn(16, 128, device="cuda", dtype=torch.bfloat16)
    layer = BlockShockLinear(linear, kernel=kernel, mask=mask, storage=storage, dtype=torch.bfloat16)
    for twin in (copied(layer) for copied in COPIES):
        optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
        for _ in range(2):
            twin(x).float().square().mean().backward()
            optimizer.step()
        twin.check()
        assert not torch.equal(twin.weight, layer.weight)
        with torch.inference_mode():
            right = twin.to_linear()(x.to(parameters))
            torch.testing.assert_close(twin(x).to(parameters), right, rtol=0.05, atol=0.05)
        for parameter in twin.parameters():
            parameter.data.view(-1)[:2].add_(1)
        with pytest.raises(StalePacking, match="half 0: "):
            twin.check()
        twin.refresh()
        twin.check()
    layer.check()


def test_layers_pickled_before_the_package_had_wings_load() -> None:
    """Made with 7a4f828; each gave that y for x."""
    saved = torch.load(ROOT / "tests" / "data" / "layers_of_flat_package.pt", weights_only=False)
    assert saved["layers"].keys() == saved["y"].keys()
    for name, layer in saved["layers"].items():
        assert isinstance(layer, BlockShockLinear)
        assert torch.allclose(layer(saved["x"]), saved["y"][name], atol=1e-6)


def test_what_moved_is_the_same_by_its_old_name() -> None:
    for old, new in MOVED.items():
        assert importlib.import_module(old) is importlib.import_module(new)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("blockshock.maskes")
