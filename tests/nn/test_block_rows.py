"""Block-sparse rows in a user's model: W′ is what the layer is, trains as, saves, loads exactly and gives back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from learning import linear_of, optimizer_of, train, x_of
from torch import nn

import blockshock
from blockshock import MethodLinear, replace_linears
from blockshock.errors import InputError
from blockshock.matrices.block_mask import BlockMask
from blockshock.matrices.saved_mask import mask_tensor, saved_mask

ROWS = (
    "block_sparse-reference-blocks:size=8:level=0.6",
    "block_sparse-dense-blocks:size=16:level=0.5:by=norm",
    "block_sparse-reference-blocks:size=8:level=0.4:inside=random",
    "block_sparse-reference-blocks_24:size=16",
    "block_sparse_dense-blocks:size=16:by=random",
)
ROW = ROWS[0]


def linear_and_layer(row: str, seed: int = 0) -> tuple[nn.Linear, MethodLinear]:
    linear = linear_of(slice(4, 12), seed, True)
    return linear, MethodLinear(linear, row)


@pytest.mark.parametrize("row", ROWS)
def test_it_is_its_w_prime_and_trains_under_its_mask(row: str) -> None:
    linear, layer = linear_and_layer(row)
    assert isinstance(layer.mask, BlockMask)
    kept, dense = layer.mask.dense(), layer.to_linear()
    assert 0 < kept.float().mean() < 0.7
    assert torch.equal(dense.weight, linear.weight * kept), "exactly, zeros too"
    dense.weight.register_hook(lambda grad: grad * kept)
    torch.testing.assert_close(layer(x_of()), dense(x_of()))
    for trained in (layer, dense):
        train(trained, optimizer_of(trained), 3)
    torch.testing.assert_close(layer.to_linear().weight, dense.weight)
    assert layer.to_linear().weight[~kept].count_nonzero() == 0
    layer.check()


@pytest.mark.parametrize("row", ROWS)
def test_a_state_loads_into_another_layer_with_its_blocks(row: str) -> None:
    _, first = linear_and_layer(row)
    _, other = linear_and_layer(row, seed=1)
    held = other.layer.storages()[0].parameter
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    assert other.mask is not None
    assert torch.equal(other.mask.dense(), first.mask.dense())  # type: ignore[union-attr]
    assert other.layer.storages()[0].parameter is held, "which an optimizer has"
    assert torch.equal(other(x_of()), first(x_of()))
    other.check()
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(copied(x_of()), first(x_of()))


@pytest.mark.parametrize("row", ROWS)
def test_a_saved_mask_is_the_mask(row: str) -> None:
    _, layer = linear_and_layer(row)
    state = layer.state_dict()
    found = saved_mask(state)
    assert isinstance(found, BlockMask)
    assert torch.equal(found.dense(), layer.mask.dense())  # type: ignore[union-attr]
    assert torch.equal(mask_tensor(found), state["mask"])
    assert state["mask"].numel() == (48 * 64 if "inside" in row else found.kept_RC.numel())


def test_states_of_other_masks_are_refused_and_nothing_changes() -> None:
    linear, layer = linear_and_layer(ROW)
    before = layer(x_of())
    pruned = MethodLinear(linear, "pruned-reference-magnitude")
    for target, state, said in (
        (layer, pruned.state_dict(), "none of blocks, as a block-sparse layer has it"),
        (pruned, layer.state_dict(), "not 2:4"),
        (
            layer,
            {**layer.state_dict(), "mask": torch.ones(3, 5, 1, 1).bool()},
            r"not the blocks of a \(48, 64\) weight",
        ),
        (
            layer,
            {**layer.state_dict(), "mask": torch.ones(6, 8, 2, 1).bool()},
            r"not the blocks of a \(48, 64\) weight",
        ),
    ):
        with pytest.raises(RuntimeError, match=said):
            target.load_state_dict(state)
    assert torch.equal(layer(x_of()), before)


def test_rows_in_a_model() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 20))
    found = replace_linears(model, ROW)
    assert found.replaced == ("0",)
    assert "blocks of 8 do not divide N = 20, K = 48" in found.left["2"]
    assert "bsr" not in str(model[0])
    with pytest.raises(InputError, match="looks at inputs, and 0 has none: give inputs="):
        replace_linears(nn.Sequential(nn.Linear(64, 48)), "block_sparse-reference-blocks:size=8:by=score")
    x = {"0": torch.randn(10, 64)}
    assert replace_linears(nn.Sequential(nn.Linear(64, 48)), "block_sparse-reference-blocks:size=8:by=score", inputs=x)
    frozen = nn.Sequential(nn.Linear(64, 48))
    w_NK, bias = (tensor.detach().clone() for tensor in (frozen[0].weight, frozen[0].bias))
    assert replace_linears(frozen, "block_sparse-reference-blocks:size=8:by=score", inputs=x, frozen=True).replaced
    with torch.inference_mode():
        kept = frozen[0].row.picks["block_mask"].dense()
        torch.testing.assert_close(frozen(x["0"]), x["0"] @ (w_NK * kept).T + bias)
    (reason,) = replace_linears(nn.Sequential(nn.Linear(64, 48)), "block_sparse-bsr-blocks:size=8").left.values()
    assert reason == "block_kernel bsr: needs a cuda device, this is cpu"


def test_what_is_usual_is_taken_where_the_row_says_no_more() -> None:
    layer = MethodLinear(nn.Linear(256, 128), "block_sparse")
    assert layer.row.picks["block_kernel"] == "reference"
    assert isinstance(layer.mask, BlockMask)
    assert (layer.mask.size, int(layer.mask.kept_RC.sum())) == (64, 1)
    assert blockshock.MethodLinear is MethodLinear


@pytest.mark.filterwarnings("ignore")  # compilers say this and that
def test_it_compiles() -> None:
    _, layer = linear_and_layer(ROW)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = x_of().requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    assert x.grad is not None
