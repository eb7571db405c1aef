"""Ranks that would build unlike layers of one weight are told before they do: each alone would be right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from blockshock import BlockShockLinear, FrozenLinear, MethodLinear, replace_linears
from blockshock.errors import RanksApart
from blockshock.matrices import mask_digest
from blockshock.matrices.masks import DenseMask
from blockshock.ranks import Ranks


def _linear(bias: bool = True, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 32, bias=bias, **options)


def _frozen(which: str) -> nn.Linear:
    linear = _linear()
    getattr(linear, which).requires_grad_(False)
    return linear


def _given(shift: int) -> torch.Tensor:
    return torch.tensor([True, True, False, False]).roll(shift).repeat(32, 16)


PAIRS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "1010.*1100": (
        lambda: BlockShockLinear(_linear(), mask="1010"),
        lambda: BlockShockLinear(_linear(), mask="1100"),
    ),
    "gathered-1100.*reference-tile": (
        lambda: BlockShockLinear(_linear(), kernel="gathered"),
        lambda: BlockShockLinear(_linear(), kernel="reference"),
    ),
    r"products in float32.*products in bfloat16": (
        lambda: BlockShockLinear(_linear()),
        lambda: BlockShockLinear(_linear(), dtype=torch.bfloat16),
    ),
    "weight in float32.*weight in float64": (
        lambda: BlockShockLinear(_linear()),
        lambda: BlockShockLinear(_linear(dtype=torch.float64)),
    ),
    r"a trained bias.*weight in float32, products": (
        lambda: BlockShockLinear(_linear()),
        lambda: BlockShockLinear(_linear(bias=False)),
    ),
    "a trained weight.*a frozen weight": (
        lambda: BlockShockLinear(_linear()),
        lambda: BlockShockLinear(_frozen("weight")),
    ),
    "a trained bias.*a frozen bias": (
        lambda: BlockShockLinear(_linear()),
        lambda: BlockShockLinear(_frozen("bias")),
    ),
    "block_shock.*dense_tp_row": (
        lambda: replace_linears(nn.Sequential(_linear()), "block_shock"),
        lambda: replace_linears(nn.Sequential(_linear()), "dense_tp_row"),
    ),
    "auto-magnitude.*auto-random": (
        lambda: MethodLinear(_linear(), "pruned_tp_row-auto-magnitude"),
        lambda: MethodLinear(_linear(), "pruned_tp_row-auto-random"),
    ),
    "tokens=1024.*tokens=16": (
        lambda: FrozenLinear(_linear(), "block_shock"),
        lambda: FrozenLinear(_linear(), "block_shock", tokens=16),
    ),
    "with mask [0-9a-f]{12}.*with mask [0-9a-f]{12}": (
        lambda: BlockShockLinear(_linear(), mask=DenseMask(_given(0))),
        lambda: BlockShockLinear(_linear(), mask=DenseMask(_given(1))),
    ),
}


def _apart(what: str) -> str:
    with pytest.raises(RanksApart) as error:
        PAIRS[what][dist.get_rank()]()
    return str(error.value)


@pytest.mark.parametrize("what", PAIRS)
def test_unlike_layers_are_named_by_what_they_differ_in(what: str, cpu_ranks: Ranks) -> None:
    one, other = cpu_ranks.run(_apart, what)
    assert one == other
    assert re.search(f"rank 0 in .*{what}", one)


def _alike() -> list[float]:
    given = [BlockShockLinear(_linear(), mask=DenseMask(_given(0))), BlockShockLinear(_linear(), kernel="auto")]
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    return [float((layer(x) - _linear()(x)).abs().max().detach()) for layer in given]


def test_the_same_options_said_in_full_or_not_are_alike(cpu_ranks: Ranks) -> None:
    assert max(max(found) for found in cpu_ranks.run(_alike)) < 1e-5


def test_masks_have_other_digits_where_they_keep_other_columns() -> None:
    assert mask_digest(DenseMask(_given(0))) == mask_digest(DenseMask(_given(0)))
    assert mask_digest(DenseMask(_given(0))) != mask_digest(DenseMask(_given(1)))
