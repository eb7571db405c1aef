"""A layer's state holds copies: whoever writes into it, as torch.distributed.checkpoint does, changes no layer."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
import torch.distributed.checkpoint as dcp
from gpus import needs_a_gpu
from torch import nn

from blockshock import MethodLinear
from blockshock.matrices import mask_positions

ROWS = (
    *("dense_single", "pruned_dense", "pruned-auto-magnitude", "pruned-auto-tile_magnitude", "pruned-gathered-1100"),
    *("pruned-reference-magnitude:permute=yes", "pruned-reference-magnitude-masked", "block_shock-gathered"),
    *("block_shock-reference-random", "masked_split_dense", "dense_tp_row", "pruned_tp_col"),
    *("block_sparse-reference", "recipe-ste", "recipe-fst", "recipe-s_ste", "recipe-supermask:size=16"),
)


def layer_of(row: str, seed: int = 0, device: str = "cpu") -> MethodLinear:
    torch.manual_seed(seed)
    # The kernels of a GPU's blocks multiply numbers of 16 bits.
    return MethodLinear(nn.Linear(64, 64, device=device), row, dtype=torch.bfloat16 if device == "cuda" else None)


def _outputs(layer: MethodLinear) -> torch.Tensor:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weight = next(layer.parameters())
    return layer(x.to(weight.device, torch.bfloat16 if weight.is_cuda else None)).detach()


def _check(row: str, device: str) -> None:
    layer = layer_of(row, device=device)
    before, y = {name: held.clone() for name, held in layer.state_dict().items()}, _outputs(layer)
    for held in (layer.state_dict(), copy.deepcopy(layer).state_dict()):
        for tensor in held.values():
            tensor.zero_()
    assert torch.equal(_outputs(layer), y)
    assert layer.check() is None
    after = layer.state_dict()
    assert all(torch.equal(after[name], held) for name, held in before.items())


@pytest.mark.parametrize("row", ROWS)
def test_who_writes_into_a_state_changes_no_layer(row: str) -> None:
    _check(row, "cpu")


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("row", ["pruned-auto-magnitude", "block_shock", "block_sparse", "recipe-fst"])
def test_on_a_gpu_likewise(row: str) -> None:
    _check(row, "cuda")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("row", ROWS)
def test_a_distributed_checkpoint_goes_into_a_layer_that_had_another_mask(
    row: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    saved, other, folder = layer_of(row), layer_of(row, seed=1), tmp_path_factory.mktemp("saved")
    dcp.save(saved.state_dict(), checkpoint_id=folder, no_dist=True)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    other.load_state_dict(state)
    torch.testing.assert_close(_outputs(other), _outputs(saved))
    assert other.check() is None


def test_a_mask_that_is_no_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: what the layer itself holds."""
    monkeypatch.setattr(importlib.import_module("blockshock.matrices.saved_mask"), "mask_tensor", mask_positions)
    with pytest.raises(AssertionError):
        _check("pruned-auto-magnitude", "cpu")
