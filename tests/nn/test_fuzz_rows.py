"""Names of rows, and rows in the place of linear layers: each is what it says, or is refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, counts, matrix, names, seeds, specs
from torch import nn

from blockshock import MethodLinear, replace_linears
from blockshock.kernels import KERNELS
from blockshock.matrices.named_masks import MASKS
from blockshock.methods import METHODS, Promise, axis_of, parse_row
from blockshock.pruning import PRUNERS
from blockshock.training.sparse_storages import STORAGES

pytestmark = pytest.mark.reliability
methods = st.sampled_from(METHODS.names()) | specs(METHODS.names())
parts = st.one_of(*(specs(registry.names()) for registry in (KERNELS, MASKS, PRUNERS, STORAGES)), names)
rows = st.tuples(methods, st.lists(parts, max_size=4)).map(lambda found: "-".join([found[0], *found[1]]))
small = st.sampled_from(METHODS.names()) | st.sampled_from(
    (
        "block_shock-gathered-tile",
        "block_shock-reference-random-masked",
        "block_shock-auto:search=no",
        "pruned-auto-1100",
        "pruned-reference-tile_magnitude-masked",
        "block_sparse-reference-blocks:size=8:level=0.5",
        "block_sparse_dense-blocks:size=8:inside=1100",
    )
)


@examples(400)
@given(text=rows)
def test_a_name_reads_as_the_row_of_that_name(text: str) -> None:
    row = attempt(parse_row, text)
    if row is None:
        return
    assert row.name == text
    axes = METHODS.get(row.method.split(":")[0]).axes
    assert tuple(row.completed("cpu").picks) == tuple(axis for axis in axes if axis_of(axis).unsaid is None)


@examples(150)
@given(data=st.data(), N=st.sampled_from((1, 3, 4, 8, 12)), K=st.sampled_from((1, 4, 6, 8, 12)), seed=seeds)
def test_a_layer_of_a_row_is_the_linear_or_is_left(data: Any, N: int, K: int, seed: int) -> None:
    linear = nn.Linear(K, N, bias=data.draw(st.booleans()))
    with torch.no_grad():
        linear.weight.copy_(matrix(N, K, torch.float32, seed))
    row = data.draw(small | rows)
    options = {"dtype": data.draw(st.none() | st.sampled_from(FLOATS)), "tokens": data.draw(st.just(4) | counts)}
    layer = attempt(MethodLinear, linear, row, **options)
    model = nn.Sequential(linear)
    found = attempt(replace_linears, model, row, **options)
    if found is not None:
        assert bool(found.replaced) == (layer is not None) == isinstance(model[0], MethodLinear)
        assert str(found).startswith(row)
    else:
        assert layer is None
        assert model[0] is linear
    if layer is not None:
        x = matrix(3, K, torch.float32, seed + 1)
        dense = layer.to_linear()
        if layer.row.kind.promise == Promise.OWN_WEIGHTS:
            assert layer.mask is not None
            linear.weight.data.mul_(layer.mask.dense())
        assert torch.equal(dense.weight, linear.weight)
        coarse = 4e-2 if layer.layer.dtype in (torch.bfloat16, torch.float16) else 1e-5
        scale = linear.weight.abs().max() * x.abs().max() * K + 1
        assert (layer(x.to(layer.layer.dtype)).double() - linear(x).double()).abs().max() <= coarse * scale
