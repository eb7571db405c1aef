"""What a layer takes no part in is refused in a sentence: second derivatives, forward mode, functional transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, functional
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from blockshock import BlockShockLinear
from blockshock.errors import InputError
from blockshock.nn.method_linear import MethodLinear
from blockshock.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # in torch itself

Model = Callable[[torch.Tensor], torch.Tensor]


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def _x() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _penalty(model: Model) -> None:
    """A gradient of a loss that is linear in y: its backward pass holds nothing that requires a gradient."""
    x = _x()
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    grad.square().sum().backward()


def _batched(model: Model) -> None:
    x = _x()
    y = model(x)
    torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)


def _forward_mode(model: Model) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(_x().detach(), _x().detach()))).tangent


def _loss(model: Model) -> Model:
    return lambda x: model(x).square().sum()


TWICE: list[Callable[[Model], Any]] = [
    _penalty,
    lambda model: functional.hessian(_loss(model), _x()),
    lambda model: functional.hvp(_loss(model), _x(), _x()),
    lambda model: functional.vhp(_loss(model), _x(), _x()),
    lambda model: functional.jvp(model, _x(), _x()),
]
TRANSFORMS: list[Callable[[Model], Any]] = [
    _batched,
    lambda model: functional.jacobian(model, _x(), vectorize=True),
    lambda model: torch.func.vmap(model)(_x()),
    lambda model: torch.func.grad(_loss(model))(_x()),
    lambda model: torch.func.jvp(model, (_x(),), (_x(),)),
    lambda model: torch.func.jacrev(model)(_x()),
]


@pytest.mark.parametrize("call", TWICE)
def test_a_second_derivative_is_refused_and_not_zero(call: Callable[[Model], Any]) -> None:
    layer = BlockShockLinear(_linear())
    call(_linear())
    with pytest.raises(InputError, match="cannot be differentiated again"):
        call(layer)


@pytest.mark.parametrize("call", TRANSFORMS)
def test_functional_transforms_are_refused(call: Callable[[Model], Any]) -> None:
    call(_linear())
    with pytest.raises(InputError, match="takes no part in functional transforms"):
        call(BlockShockLinear(_linear()))


def test_forward_mode_is_refused() -> None:
    layer = BlockShockLinear(_linear())
    assert _forward_mode(_linear()).shape == (4, 8)
    for recording in (True, False):
        with torch.set_grad_enabled(recording), pytest.raises(InputError, match="no forward-mode derivative"):
            _forward_mode(layer)
    with forward_ad.dual_level():
        assert torch.equal(layer(_x()), layer(_x()))  # no dual number comes by here


@pytest.mark.parametrize("row", ["block_shock", "block_shock-gathered", "pruned-auto-magnitude", "dense_single"])
def test_so_it_is_by_parameters(row: str) -> None:
    layer, x = MethodLinear(_linear(), row), _x()
    for name, parameter in layer.named_parameters():
        for recording in (True, False):
            with forward_ad.dual_level(), torch.set_grad_enabled(recording):
                dual = forward_ad.make_dual(parameter.detach(), torch.ones_like(parameter))
                for one in (x, x.detach()):
                    with pytest.raises(InputError, match=r"no forward-mode derivative, by x or by its parameters: use"):
                        torch.func.functional_call(layer, {name: dual}, one)
        if not name.endswith("bias"):  # which is the parameter itself
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(parameter.detach(), torch.ones_like(parameter))
                with pytest.raises(InputError, match="no forward-mode derivative"):
                    torch.func.functional_call(_Reading(layer), {f"layer.{name}": dual}, x)
    layer(x).sum().backward()


class _Reading(nn.Module):
    """A module that reads a layer's weight and bias, and multiplies by itself."""

    def __init__(self, layer: MethodLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


def _twice_through_the_weight() -> None:
    layer, linear = BlockShockLinear(_linear()), _linear()
    _penalty(linear)
    _penalty(lambda x: F.linear(x, layer.weight, layer.bias))  # differentiates once by each
    whole = layer.layer.whole([half.parameter.grad for half in layer.layer.storages()])
    torch.testing.assert_close(whole, linear.weight.grad)
    y = F.linear(_x(), layer.weight).square().sum()
    with pytest.raises(InputError, match="cannot be differentiated again"):
        torch.autograd.grad(y, list(layer.layer.split_parameters()), create_graph=True)


def test_a_second_derivative_by_a_weight_on_two_ranks_is_refused(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_twice_through_the_weight)


def test_what_differentiates_once_is_taken() -> None:
    linear, layer = _linear(), BlockShockLinear(_linear())
    torch.testing.assert_close(functional.jacobian(layer, _x()), functional.jacobian(linear, _x()))
    for reentrant in (True, False):
        grads = []
        for model in (linear, layer):
            x = _x()
            checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads)
