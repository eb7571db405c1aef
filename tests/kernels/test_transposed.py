"""Weights whose memory holds their transpose, as GPUs have kept columns for the forward pass: on a CPU, made to."""

import copy
import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockshock import FrozenLinear
from blockshock.kernels import build_kernel, gathered
from blockshock.kernels.dense import is_transposed
from blockshock.kernels.gathered import PackedGathered
from blockshock.matrices import Piece, TransposedWeights
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.weights import GeneratedWeights

MASKS = ("1100", "0110", "1001", "tile")


@pytest.fixture
def transposes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "is_faster_transposed", lambda piece: True)


def piece_of(mask: str, seed: int = 0, N: int = 64, K: int = 96) -> Piece:
    source = GeneratedWeights(N, K, torch.bfloat16, "cpu", seed, with_bias=True)
    return Piece(source, mask=build_mask(mask, source))


def packed_of(piece: Piece, backward: bool = False) -> PackedGathered:
    packed = build_kernel("gathered").pack(piece, piece.source.bias, backward)
    assert isinstance(packed, PackedGathered)
    return packed


@pytest.mark.usefixtures("transposes")
@pytest.mark.parametrize("mask", MASKS)
def test_it_multiplies_as_rows_do_and_takes_new_values(mask: str) -> None:
    old, new = piece_of(mask), piece_of(mask, seed=1)
    packed, rows = packed_of(old), packed_of(old, backward=True)
    assert packed.kept_NJ.T.is_contiguous()
    assert rows.kept_NJ.is_contiguous()
    x_BK = torch.randn(5, old.K).bfloat16()
    torch.testing.assert_close(packed(x_BK), rows(x_BK))
    y_BN = torch.empty(5, old.N, dtype=torch.bfloat16)
    torch.testing.assert_close(packed.into(x_BK, y_BN), rows(x_BK))
    for written in (packed, rows):
        written.write(written.kept_of(new.dense()))
    torch.testing.assert_close(packed(x_BK), rows(x_BK))
    assert packed.kept_NJ.T.is_contiguous()
    torch.testing.assert_close(packed.grad_input(y_BN), rows.grad_input(y_BN))


@pytest.mark.usefixtures("transposes")
def test_copies_and_saved_layers_hold_it_so_too() -> None:
    linear = torch.nn.Linear(96, 64).bfloat16()
    layer = FrozenLinear(linear, "pruned-gathered-1100")
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    x_BK = torch.randn(3, 96).bfloat16()
    for other in (copy.deepcopy(layer), torch.load(saved, weights_only=False)):
        (packed,) = (module for module in other.modules() if isinstance(module, PackedGathered))
        assert packed.kept_NJ.T.is_contiguous()
        assert torch.equal(other(x_BK), layer(x_BK))


@pytest.mark.parametrize("rows", [slice(None), slice(8, 40)])
def test_the_other_order_is_the_same_matrix(rows: slice) -> None:
    source = GeneratedWeights(64, 96, torch.bfloat16, "cpu")
    for weights in (source, TransposedWeights(source)):
        columns = slice(4, 60)
        found = weights.gather_transposed(columns, rows)
        assert torch.equal(found, weights.gather(columns, rows=rows))
        assert found.T.is_contiguous()


@pytest.mark.parametrize(("device", "N", "faster"), [("cpu", 64, False), ("cuda", 64, True), ("cuda", 60, False)])
def test_kept_columns_lie_so_on_gpus_that_can_load_them_in_words(device: str, N: int, faster: bool) -> None:
    where: Any = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16, N=N)
    assert gathered.is_faster_transposed(where) is faster


def test_the_orders_are_told_apart() -> None:
    w_NK = torch.empty(8, 16)
    found = [is_transposed(matrix) for matrix in (w_NK, w_NK.T, torch.empty(16, 8).T, w_NK[:, :8], torch.empty(1, 16))]
    assert found == [False, True, True, False, False]
