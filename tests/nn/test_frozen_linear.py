"""Layers that only go forward: they multiply as layers that train do, hold less, and say what they lack."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from blockshock import replace_linears
from blockshock.errors import InputError, RanksApart
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.nn.method_linear import MethodLinear
from blockshock.ranks import Ranks


@pytest.mark.parametrize("row", ["pruned-reference-magnitude", "dense_single", "block_shock-gathered-1100"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_frozen_layer_multiplies_as_one_that_trains(row: str, dtype: torch.dtype | None) -> None:
    linear, x = nn.Linear(32, 16), torch.randn(2, 3, 32)
    with torch.inference_mode():
        y, right = FrozenLinear(linear, row, dtype=dtype)(x), MethodLinear(linear, row, dtype=dtype)(x)
    assert y.dtype == right.dtype
    torch.testing.assert_close(y, right)


def test_a_frozen_layer_holds_less_and_says_what_it_cannot() -> None:
    linear = nn.Linear(64, 64)
    frozen, trained = (kind(linear, "pruned-reference-magnitude") for kind in (FrozenLinear, MethodLinear))
    assert frozen.layer.weight_bytes() < trained.layer.weight_bytes()
    with pytest.raises(InputError, match="only goes forward"):
        frozen(torch.ones(1, 64, requires_grad=True))
    with pytest.raises(InputError, match="has no state"):
        frozen.state_dict()
    with pytest.raises(InputError, match=r"stays where it was built, in torch\.float32 on cpu"):
        frozen.half()
    assert frozen.float() is frozen
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert frozen(torch.ones(1, 64)).dtype == torch.float32


def test_what_is_usual_for_a_frozen_layer_is_what_is_usual_forward() -> None:
    """Of pruners the one that keeps most: its mask need not be 2:4 the other way round."""
    linear = nn.Linear(64, 64, bias=False)
    frozen, trained = (nn.Sequential(linear) for _ in range(2))
    replace_linears(frozen, "pruned", frozen=True)
    replace_linears(trained, "pruned")
    assert (type(frozen[0]), type(trained[0])) == (FrozenLinear, MethodLinear)
    magnitude = FrozenLinear(linear, "pruned-auto-magnitude")
    with torch.inference_mode():
        y, right, other = (layer(torch.eye(64)) for layer in (frozen[0], magnitude, trained[0]))
    assert torch.equal(y, right)
    assert y.abs().sum() > other.abs().sum()


def test_hooks_and_mode_come_along() -> None:
    linear, met = nn.Linear(8, 8).eval(), list[nn.Module]()
    linear.register_forward_hook(lambda module, *_: met.append(module))
    layer = FrozenLinear(linear, "dense_single")
    layer(torch.ones(1, 8))
    assert met == [layer]
    assert not layer.training


def _of_other_inputs(kind: type[FrozenLinear] | type[MethodLinear]) -> None:
    rank = dist.get_rank()
    with pytest.raises(RanksApart, match=r"rank 0 in .*, inputs \(3, 16\); rank 1 in .*, inputs \(4, 16\)"):
        kind(nn.Linear(16, 8), "pruned_tp_row-reference-wanda", inputs=torch.ones(3 + rank, 16))


@pytest.mark.parametrize("kind", [FrozenLinear, MethodLinear])
def test_inputs_of_another_shape_on_another_rank_are_refused(
    kind: type[FrozenLinear] | type[MethodLinear], cpu_ranks: Ranks
) -> None:
    cpu_ranks.run(_of_other_inputs, kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("row", ["dense_single", "dense_tp_row", "block_shock", "pruned", "dense_single-int8"])
def test_zeros_stay_zeros(row: str, dtype: torch.dtype) -> None:
    """In fp16 even the smallest normal numbers in their place come to something over many columns."""
    linear = nn.Linear(1024, 8, bias=False).to(dtype)
    with torch.no_grad():
        linear.weight[:, 1:].zero_()
    x = torch.ones(3, 1024, dtype=dtype)
    x[:, 0] = 0
    model = nn.Sequential(linear)
    replace_linears(model, row, frozen=True)
    assert (model(x) == 0).all()
