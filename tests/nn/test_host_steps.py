"""What a layer's forward pass costs the host: the operators of the product alone, and few steps of Python around it."""

from __future__ import annotations

import copy

import pytest
import torch
from counting import calls_of, run_in
from torch import nn

from blockshock import BlockShockLinear
from blockshock.nn.method_linear import MethodLinear
from blockshock.ranks import Ranks

GATHER = ["as_strided", "clone", "_unsafe_view"]
VIEWS = {"alias", "as_strided", "view", "_unsafe_view", "t", "detach"}


def layers(row: str) -> tuple[nn.Linear, MethodLinear, torch.Tensor]:
    """A linear, a copy of it under a row, both met by some x already, and that x."""
    linear, x = nn.Linear(64, 64), torch.randn(16, 64)
    layer = MethodLinear(copy.deepcopy(linear), row)
    linear(x), layer(x)
    return linear, layer, x


@pytest.mark.parametrize("row", ["dense_single", "pruned_dense", "dense_tp_row", "dense_tp_col"])
def test_a_layer_whose_product_is_dense_runs_what_a_linear_runs(row: str) -> None:
    linear, layer, x = layers(row)
    taken = ["alias"] if "tp" in row else []  # which columns are this rank's
    for one in (x, x.view(4, 4, 64)):
        ran, wanted = run_in(lambda: layer(one)), run_in(lambda: linear(one))  # noqa: B023
        assert [name for name in ran if name not in taken] == wanted
    assert calls_of(lambda: layer(x)) < 100
    with torch.no_grad():
        assert calls_of(lambda: layer(x)) < 90


def test_a_gathered_product_is_one_copy_and_one_product_of_half_of_it() -> None:
    _, layer, x = layers("pruned-gathered-1100")
    assert run_in(lambda: layer(x)) == [*GATHER, "t", "addmm"]
    assert calls_of(lambda: layer(x)) < 130


def test_two_halves_on_one_device_are_two_of_them_and_a_sum() -> None:
    _, layer, x = layers("block_shock-gathered")
    ran = [name for name in run_in(lambda: layer(x)) if name != "alias"]
    assert ran == [*GATHER, "t", "addmm", *GATHER, "t", "mm", "add"]
    assert calls_of(lambda: layer(x)) < 200


def _on_two_ranks() -> tuple[list[str], list[str], int]:
    """What runs forward and in backward, views aside, and in how many steps of the host both are."""
    torch.manual_seed(0)
    layer, x = BlockShockLinear(nn.Linear(64, 64), kernel="gathered"), torch.randn(16, 64, requires_grad=True)
    for _ in range(2):  # the second time, gradients are there
        y = layer(x)
        y.sum().backward()
    ran, y = run_in(lambda: layer(x)), layer(x)
    grad_y = torch.ones_like(y)
    back = run_in(lambda: torch.autograd.grad(y, [x, *layer.parameters()], grad_y))
    found = [[name for name in names if name not in VIEWS] for names in (ran, back)]
    return found[0], found[1], calls_of(lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], grad_y))


def test_on_two_ranks_it_copies_once_forward_and_once_in_backward(cpu_ranks: Ranks) -> None:
    for product, (forward, backward, calls) in zip(("addmm", "mm"), cpu_ranks.run(_on_two_ranks), strict=True):
        assert forward == ["clone", product, "allreduce_"]
        assert backward == ["mm", "new_empty", "_allgather_base_", "mm", "sum", "clone"]
        assert calls < 290


def test_a_step_packs_again_in_one_write_of_the_bias() -> None:
    linear, layer, x = layers("dense_single")
    ran = []
    for module in (linear, layer):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
        for _ in range(2):
            module(x).sum().backward()
            optimizer.step()
        ran.append((run_in(optimizer.step), calls_of(optimizer.step)))
    (wanted, few), (found, calls) = ran
    end = len(wanted) - 1
    assert found == [*wanted[:end], "copy_", *wanted[end:]]
    assert calls < few + 110
