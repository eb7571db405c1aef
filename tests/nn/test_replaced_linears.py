"""An nn.Linear of a user's own model is replaced: what comes along, and what is refused."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils import parametrizations, parametrize, prune

from blockshock import BlockShockLinear, BlockShockParallel
from blockshock.errors import InputError
from blockshock.ranks import Ranks


def _linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (4, 64)), generator=torch.Generator().manual_seed(1))


class _Adapted(nn.Linear):
    """A low-rank adapter, as many libraries make them."""

    def __init__(self) -> None:
        super().__init__(64, 48)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(self.down(x))


def _patched() -> nn.Linear:
    linear = _linear()
    linear.forward = lambda x: nn.functional.linear(2 * x, linear.weight, linear.bias)  # type: ignore[method-assign]
    return linear


def _with(change: Callable[[nn.Linear], Any]) -> Callable[[], nn.Linear]:
    def made() -> nn.Linear:
        linear = _linear()
        change(linear)
        return linear

    return made


def _ones_parametrization(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "bias", nn.Identity())


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (_Adapted, "this _Adapted has a forward of its own, which a BlockShockLinear would drop: fold what it adds"),
    (_patched, "this Linear has a forward of its own"),
    (_with(lambda linear: prune.l1_unstructured(linear, "weight", 0.5)), r"by torch\.nn\.utils\.prune\.remove\(linear"),
    (_with(lambda linear: prune.l1_unstructured(linear, "bias", 0.5)), r"the bias .*prune\.remove\(linear, 'bias'\)"),
    (_with(parametrizations.weight_norm), r"parametrize\.remove_parametrizations\(linear, 'weight'\)"),
    (_with(parametrizations.orthogonal), r"parametrize\.remove_parametrizations\(linear, 'weight'\)"),
    (_with(_ones_parametrization), r"the bias .*remove_parametrizations\(linear, 'bias'\)"),
    (_with(nn.utils.weight_norm), r"by torch\.nn\.utils\.remove_weight_norm\(linear\)"),
    (_with(nn.utils.spectral_norm), r"by torch\.nn\.utils\.remove_spectral_norm\(linear\)"),
    (_with(lambda linear: linear.register_buffer("scale", torch.ones(1))), "holds scale beside its weight and bias"),
    (_with(lambda linear: linear.add_module("lora", nn.Linear(1, 1))), "holds lora beside its weight and bias"),
    (_with(lambda linear: linear.weight.register_hook(lambda grad: grad * 0)), "the weight .* has hooks on its grad"),
    (
        _with(lambda linear: linear.bias.register_post_accumulate_grad_hook(lambda bias: None)),
        "the bias of this nn.Linear has hooks on its gradient",
    ),
    (lambda: nn.LazyLinear(48), "the weight of this LazyLinear has no shape yet: call it on an input first"),
    (lambda: nn.ReLU(), "takes the nn.Linear that it is to compute, got ReLU"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("made", "says"), REFUSED)
def test_what_would_be_lost_is_refused(made: Callable[[], nn.Module], says: str) -> None:
    linear: Any = made()
    with pytest.raises(InputError, match=says):
        BlockShockLinear(linear)


def test_what_is_folded_in_as_told_is_taken() -> None:
    pruned, normed, lazy = _linear(), parametrizations.weight_norm(_linear()), nn.LazyLinear(48)
    prune.l1_unstructured(pruned, "weight", 0.5)
    prune.remove(pruned, "weight")
    parametrize.remove_parametrizations(normed, "weight")
    lazy(_x())
    for linear in (pruned, normed, lazy):
        torch.testing.assert_close(BlockShockLinear(linear)(_x()), linear(_x()))


def _refused_in_a_plan() -> list[str]:
    says = []
    for made in (_Adapted, _with(lambda linear: prune.l1_unstructured(linear, "weight", 0.5)), _tied_head):
        model = nn.Sequential(made())
        before = model(_x())
        with pytest.raises(InputError) as error:
            parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), {"0": BlockShockParallel()})
        assert torch.equal(model(_x()), before), "it is left as it was"
        says.append(str(error.value))
    return says


def test_the_same_is_refused_in_a_plan(cpu_ranks: Ranks) -> None:
    adapted, pruned, tied = cpu_ranks.run(_refused_in_a_plan)[0]
    assert "has a forward of its own" in adapted
    assert "prune.remove(linear, 'weight')" in pruned
    assert "is tied" in tied


class _Language(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(48, 64), nn.Linear(64, 48, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


_ALIVE: list[nn.Module] = []


def _tied_head() -> nn.Linear:
    _ALIVE.append(_Language())
    return _ALIVE[-1].head  # type: ignore[return-value]


def test_a_tied_weight_is_refused_until_it_is_untied() -> None:
    model, lists = _Language(), nn.ParameterList()
    with pytest.raises(InputError, match=r"the weight .* is tied: it is also that of another module \(Embedding\)"):
        BlockShockLinear(model.head)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    BlockShockLinear(model.head)
    linear = _linear()
    lists.append(linear.bias)
    with pytest.raises(InputError, match=r"the bias .* is tied: it is also that of another module \(ParameterList\)"):
        BlockShockLinear(linear)


class _Twice(nn.Module):
    """One nn.Linear in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = self.second = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_a_linear_in_two_places_is_replaced_in_both() -> None:
    dense, half_done, done = _Twice(), _Twice(), _Twice()
    half_done.first = BlockShockLinear(half_done.first)
    done.first = done.second = BlockShockLinear(done.first)
    for model in (dense, half_done, done):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(_x()).square().sum().backward()
        if model is half_done:
            with pytest.raises(InputError, match=r"nn\.Linear \(64, 64\) that it was made from, which stood in more"):
                optimizer.step()
        else:
            optimizer.step()
    torch.testing.assert_close(done(_x()), dense(_x()))


def test_others_may_hold_a_weight_that_is_not_tied() -> None:
    model = _Language(tied=False)
    weight, named = model.head.weight, dict(model.named_parameters())
    optimizer, average = torch.optim.SGD(model.parameters()), copy.deepcopy(model)
    BlockShockLinear(model.head)
    assert weight is named["head.weight"]
    assert len(optimizer.param_groups[0]["params"]) == len(list(average.parameters()))
    gone = _Language()
    gone.itself = [gone]  # type: ignore[assignment]
    head = gone.head
    gc.disable()
    del gone
    BlockShockLinear(head)
    gc.enable()


def test_no_random_number_is_drawn() -> None:
    linear = _linear()
    held = linear.weight  # so that other owners are looked for
    before = torch.get_rng_state()
    BlockShockLinear(linear).to_linear()
    assert torch.equal(torch.get_rng_state(), before)
    assert held is linear.weight


@pytest.mark.parametrize("frozen", [(True, True), (True, False), (False, True), (False, False)])
def test_frozen_tensors_stay_frozen_both_ways(frozen: tuple[bool, bool]) -> None:
    linear = _linear()
    trains = [not one for one in frozen]
    for parameter, requires_grad in zip((linear.weight, linear.bias), trains, strict=True):
        parameter.requires_grad_(requires_grad)
    layer = BlockShockLinear(linear)
    halves = layer.layer.storages()
    assert layer.bias is not None
    assert [half.parameter.requires_grad for half in halves] == trains[:1] * 2
    assert layer.bias.requires_grad == trains[1]
    back = layer.to_linear()
    assert [back.weight.requires_grad, back.bias.requires_grad] == trains
    x = _x().requires_grad_()
    layer(x).sum().backward()
    assert [halves[0].parameter.grad is not None, layer.bias.grad is not None] == trains
    assert layer.weight.requires_grad == trains[0]


def test_the_mode_comes_along_both_ways() -> None:
    layer = BlockShockLinear(_linear().eval())
    assert [module.training for module in (*layer.modules(), layer.to_linear())].count(True) == 0
    assert layer.train().to_linear().training
