"""Methods and trained layers: every option, storage, dtype and layout beside torch's own; states that do not fit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fuzzing import attempt, examples
from gpus import CPU_METHODS
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, OTHERS, counts, mask_rows, matrices, matrix, names, numbers, seeds, specs
from torch import nn
from torch.nn import functional as F

from blockshock import BlockShockLinear, BlockShockParallel, load_optimizer_state, optimizer_state, saved_mask
from blockshock.errors import InputError
from blockshock.kernels import KERNELS
from blockshock.machine import (
    Alone,
    ColumnShard,
    Entry,
    Exit,
    Gathered,
    OwnFeatures,
    Part,
    Replicated,
    Summed,
    aligner,
    build_combine,
    shard,
    slowest_of_ranks,
)
from blockshock.matrices.masks import DenseMask, TiledMask
from blockshock.matrices.named_masks import MASKS, pattern_mask
from blockshock.matrices.weights import TensorWeights
from blockshock.methods import METHODS, Layer, Shape
from blockshock.methods.whole import trained
from blockshock.pruning import PRUNERS
from blockshock.training.optimizers import OPTIMIZERS, optimizer_of
from blockshock.training.parameters import Training
from blockshock.training.sparse_storages import STORAGES
from blockshock.training.steps import follower_of

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")
CPU_KERNELS = ("dense", "reference", "gathered", "auto")
sizes = st.sampled_from((4, 8, 12, 20))
batches = st.sampled_from((0, 1, 2, 3, 7))


@pytest.fixture(autouse=True, scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@st.composite
def layer_options(draw: Any, N: int, K: int) -> dict[str, Any]:
    mask = st.one_of(
        st.none(), specs(MASKS.names()), st.builds(lambda s: DenseMask(mask_rows(N, max(K // 4 * 4, 4), s)), seeds),
        st.sampled_from((TiledMask(mask_rows(4, 4, 1), N, 8), pattern_mask("1100", N + 4, 4))),
    )  # fmt: skip
    options = {
        "mask": mask,
        "kernel": st.sampled_from(CPU_KERNELS) | specs(KERNELS.names()),
        "storage": st.sampled_from(STORAGES.names()) | specs(STORAGES.names()),
        "dtype": st.none() | st.sampled_from((*FLOATS, *OTHERS)),
        "tokens": counts,
        "group": st.none() | st.sampled_from((Alone(), 3, "gloo", object())),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True))
    return {name: draw(options[name]) for name in chosen}


@pytest.mark.parametrize(("N", "K"), [(8, 8), (4, 12), (4, 4)])
def test_a_mask_of_another_shape_is_refused(N: int, K: int) -> None:
    with pytest.raises(InputError, match=rf"the mask is for a \({N}, {K}\) weight"):
        BlockShockLinear(nn.Linear(8, 4), mask=pattern_mask("1100", N, K))


def loads(layer: nn.Module, state: dict[str, Any], damaged: str) -> bool:
    """Whether a state loads; if not, the error is that of any torch module, and names the key."""
    told = ""
    try:
        layer.load_state_dict(state)
    except RuntimeError as error:
        told = str(error)
    assert not told or ("Error(s) in loading state_dict" in told and damaged in told)
    return not told


def layer_of(data: Any, N: int, K: int, seed: int, **options: Any) -> tuple[nn.Linear, BlockShockLinear | None]:
    linear = nn.Linear(K, N, bias=data.draw(st.booleans()))
    with torch.no_grad():
        linear.weight.copy_(matrix(N, K, torch.float32, seed))
        for bias in [linear.bias] if linear.bias is not None else []:
            bias.copy_(matrix(1, N, torch.float32, seed)[0])
    return linear, attempt(BlockShockLinear, copy.deepcopy(linear), **options)


@examples(310)
@given(data=st.data(), N=st.sampled_from((1, 3, 4, 8, 12)), K=st.sampled_from((1, 4, 6, 8, 12)), seed=seeds)
def test_a_layer_computes_and_trains_as_the_linear_it_replaces(data: Any, N: int, K: int, seed: int) -> None:
    linear, layer = layer_of(data, N, K, seed, **data.draw(layer_options(N, K)))
    if layer is None:
        return
    assert K % 4 == 0
    assert torch.equal(layer.to_linear().weight, linear.weight)
    shape = data.draw(st.sampled_from(((1,), (3,), (2, 3), (1, 2, 2), (), (0,), (2, 0))))
    flat = matrix(max(1, torch.Size(shape).numel()), K, torch.float32, seed, data.draw(st.sampled_from(LAYOUTS)))
    x = flat[: torch.Size(shape).numel()].reshape(*shape, K).requires_grad_()
    optimizers = [optimizer_of("sgd:lr=0.5").build(model.parameters()) for model in (linear, layer)]
    coarse = 4e-2 if layer.layer.dtype in (torch.bfloat16, torch.float16) else 1e-5
    grads = []
    for model, optimizer in zip((linear, layer), optimizers, strict=True):
        x.grad = None
        y = model(x)
        y.float().square().mean().backward()
        optimizer.step()
        grads.append((y.detach().float(), x.grad, model.state_dict()["weight"]))
    for ours, theirs in zip(*reversed(grads), strict=True):
        atol = coarse * (1 + max(theirs.abs().flatten().tolist(), default=0.0))
        torch.testing.assert_close(ours, theirs, rtol=coarse, atol=atol)


@examples(190)
@given(data=st.data(), x=matrices(st.integers(0, 4), st.integers(0, 9), (*FLOATS, *OTHERS)), seed=seeds)
def test_an_input_is_taken_or_refused(data: Any, x: torch.Tensor, seed: int) -> None:
    linear, layer = layer_of(data, 4, 8, seed)
    assert layer is not None
    shaped = data.draw(st.sampled_from((x, x[0] if len(x) else x, x[None], x.sum() if x.dtype != torch.bool else x)))
    y = attempt(layer, shaped)
    fits = shaped.ndim > 0 and shaped.shape[-1] == 8 and shaped.numel() > 0 and shaped.dtype == torch.float32
    assert (y is not None) == fits
    if y is not None:
        torch.testing.assert_close(y, linear(shaped), rtol=1e-5, atol=1e-4)


@examples(190)
@given(data=st.data(), seed=seeds, storage=st.sampled_from(STORAGES.names()))
def test_a_state_is_loaded_or_refused(data: Any, seed: int, storage: str) -> None:
    linear, layer = layer_of(data, 4, 8, seed, storage=storage)
    assert layer is not None
    state = dict(layer.state_dict())
    key = data.draw(st.sampled_from(("weight", "bias", "mask", "other")))
    wrong = st.one_of(matrices(st.integers(0, 5), st.integers(0, 9), (*FLOATS, *OTHERS)), names, st.none(), numbers)
    damaged = {**state, key: data.draw(wrong)} if data.draw(st.booleans()) else {k: state[k] for k in state if k != key}
    before = layer.to_linear().weight
    if not loads(layer, damaged, key):
        assert torch.equal(layer.to_linear().weight, before)
    assert saved_mask(state).N == 4
    attempt(saved_mask, {name: value for name, value in damaged.items() if torch.is_tensor(value)})
    layer.load_state_dict(state)
    layer.refresh()
    assert torch.equal(layer.to_linear().weight, linear.weight)
    assert linear.load_state_dict({name: state[name] for name in state if name != "mask"})


@examples(160)
@given(data=st.data(), seed=seeds, name=st.sampled_from(OPTIMIZERS.names()), storage=st.sampled_from(STORAGES.names()))
def test_an_optimizers_state_is_loaded_or_refused(data: Any, seed: int, name: str, storage: str) -> None:
    _, layer = layer_of(data, 4, 8, seed, storage=storage)
    assert layer is not None
    model = nn.Sequential(layer, nn.Linear(4, 2))
    optimizer = optimizer_of(name).build(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    saved = optimizer_state(model, optimizer)
    load_optimizer_state(model, optimizer, saved)
    again = optimizer_state(model, optimizer)
    assert again["state"].keys() == saved["state"].keys()
    for parameter, values in saved["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(again["state"][parameter][key]), torch.as_tensor(value))
    part = data.draw(st.sampled_from(("state", "groups")))
    saved[part] = data.draw(st.sampled_from(({}, [], [{}] * 3)))
    attempt(load_optimizer_state, model, optimizer, {part: saved[part]})
    attempt(load_optimizer_state, model, optimizer, saved | {"groups": data.draw(st.lists(st.just({}), max_size=3))})
    storage = layer.layer.storages()[0]
    assert follower_of(storage.parameter) is (layer.layer.joined or storage)


@examples(190)
@given(total=counts, index=counts, count=counts, multiple=st.integers(-1, 9))
def test_shards_are_equal_and_cover_everything(total: int, index: int, count: int, multiple: int) -> None:
    found = attempt(shard, total, index, count, "K", multiple)
    if found is not None:
        parts = [shard(total, i, count, "K", multiple) for i in range(min(count, 50))]
        assert found == parts[index] if index < 50 else True
        assert parts[0].start == 0
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        assert found.stop - found.start == total // count
        assert total // count % multiple == 0


@pytest.mark.parametrize("group", ["alone", "gloo"])
@examples(90)
@given(B=batches, K=sizes, seed=seeds, layout=st.sampled_from(LAYOUTS))
def test_a_group_of_one_changes_nothing(group: str, B: int, K: int, seed: int, layout: str) -> None:
    ranks = Alone() if group == "alone" else dist.group.WORLD
    assert ranks is not None
    x_BK = matrix(B, K, torch.float32, seed, layout)
    seconds = x_BK.flatten().tolist()
    assert slowest_of_ranks(seconds, CPU, ranks) == seconds
    aligner(CPU, ranks)()
    assert torch.equal(Exit().join(Part.of(x_BK)), x_BK)
    assert torch.equal(Entry().give_back(Part.of(x_BK))(), x_BK)
    if group == "alone":
        return
    combine = build_combine("nccl", ranks, B * K, torch.float32, CPU)
    for exit in (Summed(combine), Gathered(combine, slice(0, K), K)):
        assert torch.equal(exit.join(Part.of(x_BK.clone())), x_BK)
        assert torch.equal(exit.take_back(x_BK), x_BK)
    for entry in (Replicated(combine), OwnFeatures(combine, slice(0, K), K), ColumnShard(combine, slice(0, K), K)):
        assert torch.equal(entry.take(x_BK), x_BK)
        assert torch.equal(entry.give_back(Part.of(x_BK.clone()))(), x_BK)


@pytest.mark.parametrize("name", [name for name in CPU_METHODS if not name.startswith("dtensor")])
@examples(60)
@given(data=st.data(), N=sizes, K=sizes, B=batches, seed=seeds, mask=st.sampled_from(MASKS.names()))
def test_methods_compute_the_layer_and_count_it(
    name: str, data: Any, N: int, K: int, B: int, seed: int, mask: str
) -> None:
    if "block_mask" in METHODS.get(name).axes:
        N, K = 8 * N, 8 * K
    bias = matrix(1, N, torch.float32, seed + 1)[0]
    source = TensorWeights(matrix(N, K, torch.float32, seed), bias)
    training = data.draw(st.sampled_from((None, Training())))
    pruner = data.draw(
        st.sampled_from([name for name in PRUNERS.names() if not PRUNERS.get(name).transposable or N % 4 == 0])
    )
    every = {"kernel": "reference", "mask": mask, "pruner": pruner, "storage": "compressed"}
    every |= {"block_kernel": "reference", "block_mask": "blocks:size=8:level=0.6"}
    picks = {axis: every[axis] for axis in METHODS.get(name).axes if axis in every}
    inputs = partial(matrix, 7, K, torch.float32, seed + 2)
    layer = Layer(source, picks, B, backward=True, training=training, inputs=inputs)
    method = METHODS.get(name)(layer, dist.group.WORLD)
    x_BK = matrix(max(B, 1), K, torch.float32, seed, data.draw(st.sampled_from(LAYOUTS)))[:B].requires_grad_()
    w_NK = method.reference(layer, 1).rows(0, N)
    y_BN = method(x_BK)
    torch.testing.assert_close(y_BN, F.linear(x_BK, w_NK, bias), rtol=1e-5, atol=1e-5)
    y_BN.sum().backward()
    torch.testing.assert_close(x_BK.grad, w_NK.sum(0).expand(B, K), rtol=1e-5, atol=1e-4)
    shape = Shape(N, K, 4, 1, True, training, picks=picks)
    METHODS.get(name).check(shape)
    assert METHODS.get(name).estimate(shape).steady > 0
    assert method.work(max(B, 1), backward=True)["products"].flops
    assert method.weight_bytes() > 0
    assert method.algorithm
    if training is not None:
        assert torch.equal(method.whole_weight(), w_NK)
        storage = trained(method.weights()[0])
        assert storage.dense(storage.parameter.detach()).shape == (N, K)
    assert attempt(method, x_BK.detach().double()) is None
    assert attempt(METHODS.get(name).check, Shape(N, K, 4, data.draw(st.integers(2, 9)))) is None


@examples(60)
@given(data=st.data(), kernel=specs(KERNELS.names()), seed=seeds)
def test_a_plan_of_parallelize_module_takes_the_same_options(data: Any, kernel: str, seed: int) -> None:
    linear, layer = layer_of(data, 4, 8, seed, kernel=kernel)
    style = attempt(BlockShockParallel, kernel=kernel)
    if layer is not None:
        assert style is not None
        assert torch.equal(layer.to_linear().weight, linear.weight)
