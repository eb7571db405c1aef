"""Which optimizers may train a half, and the states that they save: whole, and only if they load."""

import io
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import blockshock
from blockshock import BlockShockLinear, load_optimizer_state, optimizer_state
from blockshock.errors import InputError
from blockshock.nn.method_linear import MethodLinear
from blockshock.ranks import Ranks

ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "ASGD", "RMSprop", "Rprop")


def _linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(16, 8)


def _model(linear: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 16), linear, nn.Linear(8, 4))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


def _train_elementwise() -> None:
    """All of torch's optimizers that act elementwise: as the dense model, and on after resuming by names."""
    for name in ELEMENTWISE:
        kind = getattr(torch.optim, name)
        options: dict[str, Any] = {"lr": 0.01} | ({"momentum": 0.9} if name == "SGD" else {})
        dense, model, other = (_model(part) for part in (_linear(), BlockShockLinear(_linear()), _linear(5)))
        optimizers = [kind(trained.named_parameters(), **options) for trained in (dense, model)]
        for seed in range(3):
            for trained, optimizer in zip((dense, model), optimizers, strict=True):
                _step(trained, optimizer, seed)
        torch.testing.assert_close(model[1].to_linear().weight, dense[1].weight, rtol=1e-4, atol=1e-5)
        file = io.BytesIO()
        torch.save(optimizer_state(model, optimizers[1]), file)
        file.seek(0)
        other.load_state_dict({key: value for key, value in model.state_dict().items() if key != "1.mask"})
        resumed = kind(other.named_parameters(), lr=0.5)
        load_optimizer_state(other, resumed, torch.load(file, weights_only=True))
        names = [group.get("param_names") for group in resumed.param_groups]
        assert names in ([None], [[name for name, _ in other.named_parameters()]]), "its own names"
        for trained, optimizer in ((model, optimizers[1]), (other, resumed)):
            _step(trained, optimizer, 3)
        torch.testing.assert_close(model[1].to_linear().weight, other[1].weight, rtol=1e-4, atol=1e-5)


def test_elementwise_optimizers_train_halves_as_the_dense_layer(cpu_ranks: Ranks) -> None:
    _train_elementwise()
    cpu_ranks.run(_train_elementwise)


class RowNorm(torch.optim.SGD):
    """Steps in its own way."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad / parameter.grad.norm())


class Signs(torch.optim.Optimizer):
    """Elementwise, and no optimizer of torch."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


class Plain(torch.optim.AdamW):
    """Changes nothing of the step."""


WHOLE = [kind for name in ("Muon", "Adafactor", "LBFGS") if (kind := getattr(torch.optim, name, None))]


def _refused() -> None:
    """Before anything changes: by name, or as one that nobody knows; never where there is no half."""
    for kind in (*WHOLE, RowNorm, Signs):
        layer, x = BlockShockLinear(_linear()), torch.ones(2, 16)
        half, before = layer.layer.storages()[0].parameter, layer.to_linear().weight
        optimizer = kind([half])
        assert half is not None
        layer(x).sum().backward()
        says = f"^{kind.__name__} {'looks' if kind in WHOLE else 'may look'} at whole matrices"
        with pytest.raises(InputError, match=says) as error:
            optimizer.step(lambda: 0.0)
        assert ("say so once" in str(error.value)) == (kind not in WHOLE)
        with pytest.raises(InputError, match=says):
            optimizer_state(layer, optimizer)
        assert torch.equal(layer.to_linear().weight, before)
    for kind in WHOLE[:2]:  # of a matrix that is whole
        linear = _linear()
        linear(x).sum().backward()
        kind([linear.weight]).step()


def test_an_optimizer_of_whole_matrices_is_refused_by_name(cpu_ranks: Ranks) -> None:
    _refused()
    cpu_ranks.run(_refused)


@pytest.mark.parametrize("row", ["dense_single", "recipe-ste"])
def test_lbfgs_is_refused_where_all_of_a_weight_is_here_too(row: str) -> None:
    """It computes losses in the midst of its step."""
    layer, x = MethodLinear(_linear(), row), torch.ones(2, 16)
    before = layer.to_linear().weight
    layer(x).sum().backward()
    with pytest.raises(InputError, match="LBFGS computes losses in the midst of its step"):
        torch.optim.LBFGS(layer.parameters()).step(lambda: layer(x).sum())
    assert torch.equal(layer.to_linear().weight, before)
    torch.optim.Adafactor(layer.parameters()).step()
    assert not torch.equal(layer.to_linear().weight, before)


def test_an_elementwise_optimizer_of_ones_own_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockshock.training.elementwise._ELEMENTWISE", [torch.optim.AdamW])
    model, dense = _model(BlockShockLinear(_linear())), _model(_linear())
    with pytest.raises(InputError, match=r"blockshock\.elementwise\(Signs\)"):
        _step(model, Signs(model.parameters()), 0)
    assert blockshock.elementwise(Signs) is Signs
    for trained in (model, dense):
        _step(trained, Signs(trained.parameters()), 0)
    torch.testing.assert_close(model[1].to_linear().weight, dense[1].weight)
    _step(model, Plain(model.parameters()), 1)


def test_a_state_of_parameters_without_a_gradient_and_of_other_shapes_loads() -> None:
    model = _model(BlockShockLinear(_linear()))
    model[0].requires_grad_(False)
    adam, factor = torch.optim.AdamW(model.parameters()), torch.optim.Adafactor(model[2].parameters())
    for optimizer in (adam, factor):
        _step(model, optimizer, 0)
    other = _model(_linear(7))
    saved = optimizer_state(model, adam)
    resumed = torch.optim.AdamW(other.parameters())
    load_optimizer_state(other, resumed, saved)
    assert torch.equal(resumed.state[other[1].weight]["exp_avg"], saved["state"]["1.weight"]["exp_avg"])
    assert other[0].weight not in resumed.state
    resumed = torch.optim.Adafactor(other[2].parameters())
    load_optimizer_state(other, resumed, optimizer_state(model, factor))
    assert resumed.state[other[2].weight]["row_var"].shape == (4, 1)
    bad = optimizer_state(model, factor)
    bad["shapes"]["2.weight"] = (3, 8)
    with pytest.raises(InputError, match=r"state of '2.weight' has shape \(3, 8\), not \(4, 8\)"):
        load_optimizer_state(other, resumed, bad)
    assert resumed.state[other[2].weight]["row_var"].shape == (4, 1), "nothing was loaded"


def test_lbfgs_without_halves_saves_and_loads() -> None:
    models = [_model(_linear()), _model(_linear())]
    optimizers = [torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3) for model in models]

    def loss(model: nn.Module) -> torch.Tensor:
        model.zero_grad()
        value: torch.Tensor = model(torch.ones(2, 16)).square().sum()
        value.backward()
        return value

    optimizers[0].step(lambda: loss(models[0]))
    file = io.BytesIO()
    torch.save(optimizer_state(models[0], optimizers[0]), file)
    file.seek(0)
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer_state(models[1], optimizers[1], torch.load(file, weights_only=True))
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.step(lambda model=model: loss(model))  # type: ignore[misc]
    assert torch.equal(models[0][1].weight, models[1][1].weight)


def test_a_state_that_could_not_be_loaded_is_not_saved() -> None:
    layer = BlockShockLinear(_linear())
    half, *others = [storage.parameter for storage in layer.layer.storages()]
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
    layer(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    optimizer.state[half]["row"] = torch.ones(8)
    for other in others:
        optimizer.state[other]["row"] = torch.ones(8)
    with pytest.raises(InputError, match=r"weight's row is a tensor \(8,\), neither one number nor"):
        optimizer_state(layer, optimizer)
    if others and not dist.is_initialized():
        del optimizer.state[others[0]]
        with pytest.raises(InputError, match="a state of one half of 'weight' alone"):
            optimizer_state(layer, optimizer)
