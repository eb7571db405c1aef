"""Rows of own weights in a user's model: W′ is what the layer is, saves, loads exactly and gives back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_a_gpu, needs_two_gpus
from learning import linear_of, optimizer_of, train, x_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import blockshock
from blockshock import MethodLinear, replace_linears
from blockshock.errors import InputError, RanksApart
from blockshock.pruning import PRUNERS, Pruner
from blockshock.ranks import Ranks

ROWS = (
    "pruned-reference-magnitude",
    "pruned-reference-magnitude-masked",
    "pruned-gathered-1100",
    "pruned-auto:search=no",
    "pruned_dense-magnitude",
    "pruned_tp_row-reference-magnitude",
    "pruned_tp_row-gathered-1100-masked",
    "pruned_tp_col-reference-random",
)


def _linear(seed: int = 0, bias: bool = True) -> nn.Linear:
    return linear_of(slice(4, 12), seed, bias)


def _masked(layer: MethodLinear) -> nn.Linear:
    """The dense layer of the same W′, trained under the same mask."""
    dense, mask = layer.to_linear(), layer.mask
    assert mask is not None
    kept = mask.dense().to(dense.weight.device)
    dense.weight.register_hook(lambda grad: grad * kept)
    return dense


def _is_its_w_prime(row: str) -> None:
    linear = _linear()
    layer = MethodLinear(linear, row)
    dense = _masked(layer)
    assert layer.mask is not None
    kept = layer.mask.dense()
    assert torch.equal(kept.unflatten(1, (-1, 4)).sum(-1), torch.full((48, 16), 2))
    assert torch.equal(dense.weight, linear.weight * kept), "exactly, zeros too"
    if "magnitude" in row and "tile" not in row:
        lost = (linear.weight.abs() * ~kept).unflatten(1, (-1, 4)).amax(-1)
        least = linear.weight.abs().masked_fill(~kept, torch.inf).unflatten(1, (-1, 4)).amin(-1)
        assert (lost <= least).all()
    torch.testing.assert_close(layer(x_of()), dense(x_of()))
    for trained in (layer, dense):
        train(trained, optimizer_of(trained), 3)
    torch.testing.assert_close(layer.to_linear().weight, dense.weight)
    assert layer.to_linear().weight[~kept].count_nonzero() == 0
    torch.testing.assert_close(layer.to_linear().bias, dense.bias)
    layer.check()


def _all_are() -> None:
    for row in ROWS:
        _is_its_w_prime(row)


@pytest.mark.parametrize("row", ROWS)
def test_it_is_its_w_prime_and_trains_under_its_mask(row: str) -> None:
    _is_its_w_prime(row)


def test_so_it_is_on_two_ranks(cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_all_are)


@pytest.mark.parametrize("row", ROWS)
def test_products_in_bf16_round_w_prime_and_not_the_parameters(row: str) -> None:
    linear = _linear()
    layer = MethodLinear(linear, row, dtype=torch.bfloat16)
    assert layer.mask is not None
    assert torch.equal(layer.to_linear().weight, linear.weight * layer.mask.dense())
    assert layer(x_of()).dtype == torch.bfloat16


def _saved(row: str) -> bytes:
    layer = MethodLinear(_linear(), row)
    optimizer = optimizer_of(layer)
    train(layer, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": layer.state_dict(), "optimizer": blockshock.optimizer_state(layer, optimizer)}, file)
    return file.getvalue()


def _resumed(file: bytes, row: str, seed: int) -> torch.Tensor:
    """W′ after two more steps of a layer of other weights, and so of another mask, whose optimizer was there before."""
    saved = torch.load(io.BytesIO(file), weights_only=True)
    layer = MethodLinear(_linear(seed), row)
    optimizer = optimizer_of(layer)
    train(layer, optimizer, 1)
    layer.load_state_dict(saved["model"])
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in saved["model"].items())
    blockshock.load_optimizer_state(layer, optimizer, saved["optimizer"])
    assert torch.equal(layer(x_of(7)), copy.deepcopy(layer)(x_of(7)))
    train(layer, optimizer, 2, first=2)
    layer.check()
    return layer.to_linear().weight.detach()


def test_a_state_loads_exactly_under_the_mask_that_it_was_saved_with(cpu_ranks: Ranks) -> None:
    for row in ROWS:
        layer = MethodLinear(_linear(), row)
        train(layer, optimizer_of(layer), 4)
        # The tensor-parallel rows prune each shard by itself: the mask may depend on how many there are.
        goes_on = [_resumed(_saved(row), row, 9), *cpu_ranks.run(_resumed, _saved(row), row, 9)]
        for weight in goes_on:
            torch.testing.assert_close(weight, layer.to_linear().weight.detach())


def _with(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    state = MethodLinear(_linear(1), "pruned-reference-magnitude").state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state["weight"].add_(1.0), r"weight: it holds .* at row 0, column \d, which the mask drops"),
        (lambda state: state.pop("mask"), "which the mask drops, so this is not the state of such a layer"),
        (lambda state: state.update(mask=torch.ones(4, 4, dtype=torch.bool)), "weight: .*row 0"),
        (lambda state: state.update(mask=torch.ones(3, dtype=torch.uint8)), "not the mask of a"),
        (lambda state: state["weight"].copy_(state["weight"] / 0), "weight: .* nan"),
        (lambda state: state.update(weight=torch.zeros(4, 4)), r"weight has shape \(4, 4\)"),
    ],
)
def test_a_state_that_is_none_changes_nothing(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    layer = MethodLinear(_linear(), "pruned-reference-magnitude")
    before, y = layer.state_dict(), layer(x_of())
    with pytest.raises(RuntimeError, match=says):
        layer.load_state_dict(_with(change))
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(layer(x_of()), y)


def test_a_state_without_its_mask_is_told_unless_it_is_meant() -> None:
    """What it holds would be trained under the mask of a layer that has nothing to do with it."""
    layer = MethodLinear(_linear(), "pruned-reference-1100")
    state = MethodLinear(_linear(1), "pruned-reference-1100").state_dict()
    del state["mask"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"mask"'):
        layer.load_state_dict(state)
    layer.load_state_dict(state, strict=False)
    assert torch.equal(layer.to_linear().weight, state["weight"])


@pytest.mark.parametrize("row", ROWS)
def test_copies_and_pickles(row: str) -> None:
    layer = MethodLinear(_linear(), row)
    y = layer(x_of())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x_of()), y)
        train(twin, optimizer_of(twin), 1)
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin(x_of()), y)


class _ByInputs(Pruner):
    """Keeps the two of each four whose inputs are largest, and doubles them."""

    needs_inputs = True

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.x_TK is not None
        kept = self.x_TK.norm(dim=0).unflatten(0, (-1, 4)).topk(2, dim=-1).indices
        mask_K = torch.zeros(w_RK.shape[1] // 4, 4, dtype=torch.bool).scatter_(1, kept, True).flatten()
        return 2 * w_RK, mask_K.expand_as(w_RK)


@pytest.fixture
def by_inputs(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(PRUNERS, "_entries", {**PRUNERS._entries, "by_inputs": _ByInputs})
    return "pruned-reference-by_inputs"


def test_a_pruner_that_looks_at_inputs_is_given_them(by_inputs: str) -> None:
    model = nn.Sequential(_linear(), nn.ReLU(), nn.Linear(48, 8))
    x = torch.arange(64.0).expand(2, 3, 64)
    found = replace_linears(model, by_inputs, where=lambda name, _: name == "0", inputs={"0": x})
    assert found.replaced == ("0",)
    expected = 2 * _linear().weight * (torch.arange(64) % 4 > 1)
    torch.testing.assert_close(model[0].to_linear().weight, expected)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (None, r"the pruner of pruned-reference-by_inputs looks at inputs, and 0 has none: give inputs=\{'0': x, …\}"),
        ({"0": x_of()}, "looks at inputs, and 2 has none"),
        ({"0": x_of(), "2": x_of()}, r"2: x must be \(B, 48\)"),
        ({"0": x_of(), "2": None}, "2 has none"),
        (
            {"0": x_of(), "2": torch.full((3, 48), torch.nan)},
            "2: calibration inputs holds nan .* needs finite ones",
        ),
        ({"0": x_of(), "2": torch.ones(0, 48)}, "2: .*T at least 1"),
        ({"0": x_of(), "2": torch.ones(3, 48).int()}, "2: x must be of floating-point numbers"),
        (x_of(), "inputs= takes some x of each layer by its name, got Tensor"),
        ({"mlp": x_of()}, "inputs= has 'mlp', and no nn.Linear of that name is there: 0, 2"),
    ],
)
def test_inputs_that_do_not_fit_are_told_and_nothing_is_replaced(inputs: Any, says: str, by_inputs: str) -> None:
    model = nn.Sequential(_linear(), nn.ReLU(), nn.Linear(48, 8))
    before = list(model)
    with pytest.raises(InputError, match=says):
        replace_linears(model, by_inputs, inputs=inputs)
    assert list(model) == before


def test_without_inputs_a_layer_says_what_it_needs(by_inputs: str) -> None:
    with pytest.raises(InputError, match=r"pruner by_inputs needs calibration inputs \(T, 64\), and was given none"):
        MethodLinear(_linear(), by_inputs)


def test_torchs_own_pruned_tensor_is_no_layer_of_ours() -> None:
    with pytest.raises(InputError, match="torch's own to_sparse_semi_structured"):
        replace_linears(nn.Sequential(_linear()), "torch_semi_structured-magnitude")


def _over_replicas(wrapper: str) -> None:
    """Each rank has a layer of its own, and a part of the batch: the same as one layer with all of it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), _linear())
    alone = copy.deepcopy(model)
    for one in (model, alone):
        assert replace_linears(one, "pruned-reference-magnitude", where=lambda name, _: name == "2").replaced == ("2",)
    trained: Any = model
    if wrapper == "fully_shard":
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    else:
        trained = DistributedDataParallel(model)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (trained, alone)]
    for step in range(3):
        x = x_of(step, 8, 64)
        for one, optimizer in zip((trained, alone), optimizers, strict=True):
            optimizer.zero_grad()
            given = x.chunk(2)[dist.get_rank()] if one is trained else x
            one(given).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(trained(x), alone(x), rtol=1e-4, atol=1e-4)
    state = model[2].state_dict()
    assert (state["weight"] == 0).sum() >= 48 * 64 // 2
    apart = nn.Sequential(_linear(dist.get_rank()))
    replace_linears(apart, "pruned-reference-magnitude")
    with pytest.raises(RanksApart, match="of mask"):
        DistributedDataParallel(apart)


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "fully_shard"])
def test_what_runs_on_one_device_is_replicated_as_a_linear_is(wrapper: str, cpu_ranks: Ranks) -> None:
    cpu_ranks.run(_over_replicas, wrapper)


def _trains_on_a_gpu(row: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)  # the same on every rank
    linear = nn.Linear(512, 256).to(device)
    with torch.no_grad():
        linear.weight[3, 4:12] = 0.0
    model = nn.Sequential(linear)
    print(replace_linears(model, row, dtype=torch.bfloat16, tokens=256))
    layer: Any = model[0]
    assert isinstance(layer, MethodLinear), "it can run there"
    dense = copy.deepcopy(linear) if layer.mask is None or "pruned" not in row else _masked(layer)
    assert torch.equal(layer.to_linear().weight, dense.weight)
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(1)).to(device)
    for trained in (layer, dense):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            trained(x).float().square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.to_linear().weight, dense.weight, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(layer(x).float(), dense(x), rtol=0.05, atol=0.05)
    layer.check()
    other = nn.Sequential(nn.Linear(512, 256).to(device))
    replace_linears(other, row, dtype=torch.bfloat16, tokens=256)
    if "pruned" in row or layer.mask is None:
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(x), model(x), rtol=0.02, atol=0.02)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(
    "row",
    [
        "dense_single",
        "block_shock-auto:search=no",
        "pruned-cusparselt:search=no-magnitude",
        "pruned-cusparselt:search=no-tile_magnitude-masked",
        "pruned-gathered-1100",
        "pruned-auto:search=no-tile_magnitude",
        "pruned_dense-magnitude",
    ],
)
def test_rows_on_a_gpu(row: str) -> None:
    _trains_on_a_gpu(row)


@pytest.mark.gpu2
@needs_two_gpus
def test_rows_on_two_gpus(gpu_ranks: Ranks) -> None:
    for row in ("dense_tp_row", "dense_tp_col", "block_shock-gathered", "pruned-auto:search=no-magnitude"):
        gpu_ranks.run(_trains_on_a_gpu, row)
    for row in ("pruned_tp_row-cusparselt:search=no-magnitude", "pruned_tp_col-gathered-1100"):
        gpu_ranks.run(_trains_on_a_gpu, row)
