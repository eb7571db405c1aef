"""Every x and grad_y that torch can hold: libraries that read raw memory are handed what they believe they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt, faked
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, matrix, seeds
from torch import nn
from torch.nn import functional as F

from blockshock import BlockShockLinear, stages
from blockshock.kernels import build_kernel
from blockshock.kernels.layout import dense_rows, is_dense
from blockshock.machine import Alone, ColumnShard, OwnFeatures, build_combine
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights, TensorWeights
from blockshock.ranks import Ranks

__all__ = ["fake_cusparselt"]

CPU = torch.device("cpu")
batches = st.sampled_from((1, 2, 7, 8, 16, 23))


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Of a few roundings to bf16."""
    return bool((found.double() - wanted.double()).norm() <= 0.01 * wanted.double().norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [0, 1, 7, 8])
def test_a_matrix_is_copied_where_it_does_not_lie_densely_and_nowhere_else(rows: int, layout: str) -> None:
    given_BK = matrix(max(rows, 1), 16, torch.bfloat16, 0, layout)[:rows]
    with stages.recording(lambda: 0.0) as recorder:
        dense_BK = dense_rows(given_BK, multiple=8)
    assert is_dense(dense_BK)
    assert dense_BK.shape == (-(-rows // 8) * 8, 16)
    assert torch.equal(dense_BK[:rows], given_BK)
    assert not dense_BK[rows:].any()
    same = rows % 8 == 0 and given_BK.stride() == (16, 1) and given_BK.data_ptr() % 16 == 0
    assert (dense_BK is given_BK) == same
    assert recorder.copied_bytes == (0 if same else dense_BK.nbytes)
    assert set(recorder.seconds(lambda start, end: 0.0)) == (set() if same else {"layout"})


@examples(200)
@given(
    x_layout=st.sampled_from(LAYOUTS), grad_layout=st.sampled_from(LAYOUTS), B=batches, seed=seeds,
    mask=st.sampled_from(("1100", "random", "tile", "tile_random")),
    dtype=st.sampled_from((torch.bfloat16, torch.float16)),
)  # fmt: skip
def test_cusparselt_multiplies_what_it_is_given(
    fake_cusparselt: Any, x_layout: str, grad_layout: str, B: int, seed: int, mask: str, dtype: torch.dtype
) -> None:
    source = TensorWeights(matrix(32, 48, dtype, seed))
    half = Piece(source, slice(0, 48), build_mask(mask, source))
    bias = matrix(1, 32, dtype, seed + 1)[0]
    packed = fake_cusparselt(search=False).pack(half, bias, backward=True)
    x_BK = matrix(B, 48, dtype, seed + 2, x_layout)
    grad_y_BN = matrix(B, 32, dtype, seed + 3, grad_layout)
    w64 = half.dense().double()
    close = {"rtol": torch.finfo(dtype).eps, "atol": 1e-30}
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w64.T + bias.double(), **close)
    torch.testing.assert_close(packed.grad_input(grad_y_BN).double(), grad_y_BN.double() @ w64, **close)
    packed.recompress(matrix(48, 32, dtype, seed + 4).T * half.mask.dense())
    w64 = matrix(48, 32, dtype, seed + 4).T.double() * half.mask.dense()
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w64.T + bias.double(), **close)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_trains_on_every_x_and_grad_y(fake_cusparselt: Any, layout: str, storage: str) -> None:
    linear = nn.Linear(64, 32).bfloat16()
    with torch.no_grad():
        linear.weight.copy_(matrix(32, 64, torch.bfloat16, 1))
        linear.weight[3, 5:9], linear.weight[4, 2] = 0.0, -0.0
        linear.bias.zero_()
    layer = BlockShockLinear(linear, Alone(), mask="tile_random", kernel="cusparselt:search=no", storage=storage)
    x, grad = matrix(7, 64, torch.bfloat16, 2, layout), matrix(7, 32, torch.bfloat16, 3, layout)
    for _ in range(2):
        ours = x.detach().requires_grad_()
        dense = x.detach().contiguous().requires_grad_()
        y, wanted = layer(ours), F.linear(dense.double(), layer.to_linear().weight.double(), layer.bias.double())
        assert _close(y.double(), wanted)
        y.backward(grad)
        wanted.backward(grad.double())
        assert _close(ours.grad, dense.grad)
        exact = grad.double().T @ x.double()
        halves = layer.layer.storages()
        found = sum(half.dense(half.parameter.grad) for half in halves)
        assert _close(found.double(), exact)
        torch.optim.SGD(layer.parameters(), lr=2**-7).step()
        layer.zero_grad()


@pytest.mark.parametrize("kernel", ["cusparselt:search=no", "gathered", "reference", "dense"])
def test_a_column_shard_is_a_slice(fake_cusparselt: Any, kernel: str) -> None:
    source = GeneratedWeights(32, 96, torch.bfloat16, CPU)
    mask, shard = build_mask("1100", source), slice(48, 96)
    half = Piece(source, shard, mask.columns(48, 96))
    x_BK = matrix(8, 96, torch.bfloat16, 1)
    packed = build_kernel(kernel).pack(half, backward=True)
    nobody = build_combine("nccl", Alone(), 1, torch.bfloat16, CPU)
    for entry in (ColumnShard(nobody, shard, 96), OwnFeatures(nobody, shard, 96)):
        wanted = x_BK[:, shard].double() @ half.dense().double().T
        assert _close(packed(entry.take(x_BK)).double(), wanted)


def test_what_a_layer_copies_for_a_slice_is_counted(fake_cusparselt: Any) -> None:
    linear = nn.Linear(48, 32).bfloat16()
    layer = BlockShockLinear(linear, Alone(), kernel="cusparselt:search=no", mask="tile")
    for x, copies in ((matrix(8, 96, torch.bfloat16, 1)[:, :48], 2), (matrix(8, 48, torch.bfloat16, 1), 0)):
        with torch.no_grad(), stages.recording(lambda: 0.0) as recorder:
            layer(x)
        assert recorder.copied_bytes == copies * 8 * 48 * 2, "one copy for each half on this device"


def _trains_as_a_linear(mask: str, storage: str) -> None:
    """Two steps of a layer whose ranks hold column shards, on inputs that are slices."""
    torch.manual_seed(0)
    linear = nn.Linear(128, 32)
    with faked():
        layer = BlockShockLinear(
            copy.deepcopy(linear), kernel="cusparselt:search=no", mask=mask, storage=storage, dtype=torch.bfloat16
        )
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in (linear, layer)]
        for seed in range(3):
            x = matrix(7 + seed, 128, torch.float32, seed, "part") / 4
            outputs = [model(x) for model in (linear, layer)]
            assert _close(outputs[1].detach(), outputs[0].detach())
            for y, optimizer in zip(outputs, optimizers, strict=True):
                optimizer.zero_grad()
                y.float().square().mean().backward()
                optimizer.step()


@pytest.mark.parametrize(("mask", "storage"), [("tile", "compressed"), ("random", "masked"), ("tile_random", "masked")])
def test_layers_over_shards_of_columns_train_as_a_linear(mask: str, storage: str, other_ranks: Ranks) -> None:
    other_ranks.run(_trains_as_a_linear, mask, storage)


@pytest.mark.parametrize("layout", ["whole", "first columns", "odd columns", "one element on", "expanded"])
def test_compiled_code_lays_out_as_eager_code_does(fake_cusparselt: Any, layout: str) -> None:
    half = Piece(source := GeneratedWeights(32, 48, torch.bfloat16, CPU), slice(0, 48), build_mask("random", source))
    packed, x_BK = fake_cusparselt(search=False).pack(half), matrix(8, 48, torch.bfloat16, 0, layout)
    for call in (packed, lambda x: dense_rows(x, 8) + 0):
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        for rows in (8, 7):
            assert torch.equal(compiled(x_BK[:rows]), call(x_BK[:rows]))
    torch._dynamo.reset()
