"""Halves on one CPU multiply as the one matrix that they are, where a layer is small; all else is as of halves."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from counting import calls_of, run_in
from torch import nn

from blockshock import BlockShockLinear
from blockshock.errors import InputError, MaskError, StalePacking
from blockshock.matrices.masks import DenseMask
from blockshock.methods.joined import Joined
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
    assert calls_of(lambda: layer(x)) < 50


def step(layer: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    layer(x).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("needs_x", [False, True])
def test_a_step_is_a_linears_and_what_puts_the_halves_in_their_places(needs_x: bool) -> None:
    linear, x = make_linear(64), torch.randn(16, 64, requires_grad=needs_x)
    layer, ran, calls = BlockShockLinear(copy.deepcopy(linear)), [], []
    for module in (linear, layer):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
        step(module, optimizer, x), step(module, optimizer, x)
        ran.append(Counter(run_in(lambda: step(module, optimizer, x))))  # noqa: B023
        calls.append(calls_of(lambda: step(module, optimizer, x)))  # noqa: B023
    made = {name: count for name, count in (ran[1] - ran[0]).items() if name not in ("detach", "expand", "clone")}
    assert made == {"index_select": 2, "copy_": 2, "add_": 1}
    assert calls[1] < calls[0] + 90


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


def test_a_step_after_other_memory_came_under_a_parameter_trains_that() -> None:
    layer = BlockShockLinear(make_linear())
    wanted = layer.to_linear()
    for change in layer.parameters():
        change.data = change.data * 2
    with torch.no_grad():
        wanted.weight.mul_(2), wanted.bias.mul_(2)  # type: ignore[union-attr]
    for module in (layer, wanted):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer(make_x()), wanted(make_x()))
    layer.check()


def test_a_step_is_a_write_to_what_a_copys_packings_hold_too() -> None:
    layer = copy.deepcopy(BlockShockLinear(make_linear()))  # whose parameters have counters of their own
    for packed in layer.layer.packings():
        y = (packed.values * torch.ones(1, requires_grad=True)).sum()
        trained(layer, 1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


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


def test_what_torch_does_not_take_is_said_in_words() -> None:
    layer = BlockShockLinear(make_linear())
    for one in (torch.empty(4, 64, device="meta"), torch.empty(64, device="meta")):
        with pytest.raises(InputError, match=r"on cpu, got torch[.]float32 on meta"):
            layer(one)


def test_its_bias_is_the_parameter_itself() -> None:
    layer, x = BlockShockLinear(make_linear()), make_x()
    layer.bias.data.add_(1)
    torch.testing.assert_close(layer(x), layer.to_linear()(x))
    layer.check()


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


def test_what_is_frozen_gets_no_gradient_until_it_is_trained_again() -> None:
    layer = BlockShockLinear(make_linear())
    first, second = (half.parameter for half in layer.layer.storages())
    for needs_x in (False, True):
        x = torch.randn(4, 64, requires_grad=needs_x)
        for frozen in ((), (second,), (first, second), (first, second, layer.bias), ()):
            for parameter in layer.parameters():
                parameter.requires_grad_(all(parameter is not one for one in frozen)).grad = None
            y = layer(x)
            assert y.requires_grad == (needs_x or len(frozen) < 3)
            if y.requires_grad:
                y.sum().backward()
            for parameter in layer.parameters():
                assert (parameter.grad is None) == any(parameter is one for one in frozen)


@pytest.mark.parametrize("needs_x", [False, True])
def test_gradients_go_to_the_parameters_that_are_there_now(needs_x: bool) -> None:
    layer, x = BlockShockLinear(make_linear()), torch.randn(4, 64, requires_grad=needs_x)
    layer(x).sum().backward()
    wanted = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    for _ in range(3):  # of the same memory, so that what multiplies is theirs too
        there = {name: one.detach().requires_grad_() for name, one in layer.named_parameters()}
        torch.func.functional_call(layer, there, x).sum().backward()
        assert [one.grad for one in layer.parameters()] == [None] * 3
        torch.testing.assert_close([one.grad for one in there.values()], wanted)


@pytest.mark.parametrize("needs_x", [False, True])
def test_passes_that_go_back_together_or_twice_add_up(needs_x: bool) -> None:
    linear = make_linear()
    layer, x = BlockShockLinear(copy.deepcopy(linear)), torch.randn(2, 4, 64, requires_grad=needs_x)
    for module in (linear, layer):
        loss = (module(x[0]) * module(x[1])).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    whole = layer.layer.whole([half.parameter.grad for half in layer.layer.storages()])
    torch.testing.assert_close(whole, linear.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad, rtol=1e-4, atol=1e-5)


def test_hooks_on_its_parameters_are_called() -> None:
    layer, seen = BlockShockLinear(make_linear()), []
    layer(torch.randn(4, 64)).sum().backward()
    for name, parameter in layer.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.append(name))
        parameter.register_post_accumulate_grad_hook(lambda parameter, name=name: seen.append(name))
    layer(torch.randn(4, 64)).sum().backward()
    assert Counter(seen) == {name: 2 for name, _ in layer.named_parameters()}


def test_halves_in_another_dtype_and_columns_in_another_order_are_joined_too() -> None:
    linear = make_linear()
    layer, wanted = BlockShockLinear(copy.deepcopy(linear), dtype=torch.bfloat16), copy.deepcopy(linear)
    assert layer.layer.joined
    for _ in range(2):
        torch.testing.assert_close(trained(layer, 1), trained(wanted, 1), rtol=0.1, atol=0.1, check_dtype=False)
    layer.check()
    permuted = MethodLinear(linear, "pruned-auto-magnitude:permute=yes")
    assert permuted.layer.joined
    for one in (permuted, copy.deepcopy(permuted), pickle.loads(pickle.dumps(permuted))):
        trained(one, 1)
        one.check()
        for x in (make_x(), make_x().detach()):
            torch.testing.assert_close(one(x), one.to_linear()(x))


def test_a_mask_that_is_written_to_is_noticed() -> None:
    mask = torch.tensor([[True, True, False, False]]).repeat(48, 16)
    layer = BlockShockLinear(make_linear(), mask=DenseMask(mask))
    layer(make_x())
    mask.logical_not_()
    for _ in range(2):
        with pytest.raises(MaskError, match="changed after weights were packed under it"):
            layer(make_x())
        torch.optim.SGD(layer.parameters(), lr=0.1).step()  # after which it is still another one


def test_a_layer_that_is_gone_frees_all_of_it() -> None:
    layer = BlockShockLinear(make_linear())
    trained(layer)
    layer(torch.randn(4, 64)).sum().backward()
    gone = [weakref.ref(one) for one in (layer.layer.joined, *layer.parameters())]
    gc.disable()
    try:
        del layer
        assert [one() for one in gone] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("row", ["block_shock-auto-1100", "pruned-auto-magnitude"])
def test_threads_that_find_it_changed_wait_until_it_is_made_anew(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = MethodLinear(make_linear(), row), make_x().detach()
    with torch.no_grad():
        wanted = -layer(x) + 2 * layer.to_linear().bias
    moved: list[int] = []
    make = Joined.make

    def slowly(self: Joined) -> None:
        moved.append(threading.get_ident())
        time.sleep(0.05)  # what is in place by now are zeros
        make(self)

    layer.load_state_dict({name: -held if name == "weight" else held for name, held in layer.state_dict().items()})
    monkeypatch.setattr(Joined, "make", slowly)

    def forward(_: int) -> torch.Tensor:
        with torch.no_grad():
            return layer(x)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(forward, range(3)))
    torch.testing.assert_close(found, [wanted] * 3, rtol=1e-4, atol=1e-5)
    assert len(moved) == 1, "by the first of them"
