"""Recipes through a layer of a user's model: what is saved, skipped, refused, and the same on all ranks."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cusparselt import faked
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from blockshock import MethodLinear, SparseFFN, load_optimizer_state, optimizer_state, replace_linears
from blockshock.errors import InputError, UnknownName
from blockshock.methods import METHODS, Role
from blockshock.phases import Case
from blockshock.plugin.records import describe_case
from blockshock.ranks import Ranks
from blockshock.training import RECIPES, RecipeStorage, recipe_of
from blockshock.training.recipes import storage as storage_module
from blockshock.training.sparse import StepAdamW, mask_24, transposable_mask

N, K = 32, 64
BLOCKS, EIGHT = "supermask:size=8:level=0.5", "s_ste:bits=8"
SHORT = {
    "fst": "fst:every=3:dense_from=9",
    "step": "step:latest=4",
    "ste": "ste:every=2",
    "supermask": BLOCKS,
}
SPECS = (*(SHORT.get(name, name) for name in RECIPES.names()), EIGHT, "pruned:dense_until=4")
every_recipe = pytest.mark.parametrize("spec", SPECS)


def built(spec: str, dtype: torch.dtype | None = None, bias: bool = True) -> MethodLinear:
    torch.manual_seed(0)
    return MethodLinear(nn.Linear(K, N, bias), f"recipe-{spec}", dtype=dtype)


def storage_of(layer: MethodLinear) -> RecipeStorage:
    (storage,) = layer.layer.storages()
    assert isinstance(storage, RecipeStorage)
    return storage


def adamw(layer: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(layer.parameters(), lr=0.03, **options)


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: range, tokens: int = 12) -> None:
    for step in steps:
        x_BK = torch.randn(tokens, K, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (layer(x_BK) - x_BK[:, :N]).square().mean().backward()
        optimizer.step()


def same(one: MethodLinear, other: MethodLinear) -> bool:
    """Whether two layers are in the same place of their schedules, bit for bit."""
    states, beside = one.state_dict(), other.state_dict()
    assert states.keys() == beside.keys()
    return all(torch.equal(states[name], beside[name]) for name in states)


@every_recipe
@pytest.mark.parametrize("after", [5, 10])
def test_a_run_that_is_resumed_has_the_bits_of_one_that_went_on(spec: str, after: int) -> None:
    layer = built(spec)
    optimizer = adamw(layer)
    train(layer, optimizer, range(after))
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}, optimizer_state(layer, optimizer)
    train(layer, optimizer, range(after, after + 5))
    torch.manual_seed(7)
    other = MethodLinear(nn.Linear(K, N), f"recipe-{spec}")
    other.load_state_dict(saved[0])
    again = adamw(other)
    load_optimizer_state(other, again, saved[1])
    train(other, again, range(after, after + 5))
    assert same(layer, other)
    assert layer.check() is None


@every_recipe
def test_a_copy_goes_on_as_the_layer_does(spec: str) -> None:
    layer = built(spec)
    optimizer = adamw(layer)
    train(layer, optimizer, range(5))
    other = copy.deepcopy(layer)
    again = adamw(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((layer, optimizer), (other, again)):
        train(one, its, range(5, 8))
    assert same(layer, other)


def test_masks_come_when_they_are_due_and_weights_each_step() -> None:
    layer = built("fst:every=3:dense_from=6")
    storage, optimizer = storage_of(layer), adamw(layer)
    for step in range(8):
        before = storage.mask_NK.clone()  # type: ignore[union-attr]
        train(layer, optimizer, range(step, step + 1))
        w_NK, due = storage.parameter.detach(), step == 2
        assert torch.equal(storage.mask_NK, transposable_mask(w_NK) if due else before)
        sparse = w_NK.where(storage.mask_NK, 0) if step < 5 else w_NK
        assert torch.equal(storage.packed.values, sparse)
        assert (storage.flipped.item() > 0) == (step >= 2)


def test_masks_of_the_weights_before_dense_training_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecipeStorage, "_take_mask", lambda self: None)
    with pytest.raises(AssertionError):
        test_what_is_pruned_is_what_dense_training_came_to()


def test_what_is_pruned_is_what_dense_training_came_to() -> None:
    for until in (0, 3):
        pruned, dense = built(f"pruned:dense_until={until}"), built("dense")
        optimizers = [adamw(layer, weight_decay=0.1) for layer in (pruned, dense)]
        for layer, optimizer in zip((pruned, dense), optimizers, strict=True):
            train(layer, optimizer, range(until))
        held, w_NK = storage_of(pruned), storage_of(dense).parameter.detach()
        assert held.is_sparse
        mask_NK = transposable_mask(w_NK)
        assert torch.equal(held.mask_NK, mask_NK)
        assert torch.equal(held.parameter, w_NK.where(mask_NK, 0))
        train(pruned, optimizers[0], range(until, until + 4))
        assert torch.equal(held.mask_NK, mask_NK), "for good"
        assert not held.parameter[~mask_NK].any(), "whatever the optimizer remembers"
        assert held.parameter[mask_NK].all()


def test_what_a_scaler_skips_advances_nothing() -> None:
    for fused in (False, True):
        for spec in ("ste", "fst:every=1", "s_ste", "step:latest=2", BLOCKS, EIGHT, "pruned:dense_until=2"):
            layer = built(spec)
            optimizer, scaler = adamw(layer, fused=fused), torch.amp.GradScaler("cpu", init_scale=4.0)
            for step in range(4):
                before = copy.deepcopy(layer.state_dict())
                scaler.scale(layer(torch.full((4, K), torch.inf if step == 1 else 1.0)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if step == 1:
                    changed = {name for name, held in layer.state_dict().items() if not torch.equal(held, before[name])}
                    assert changed <= {"recipe_counts"}, (spec, fused)  # what was drawn was drawn
                assert storage_of(layer).steps == (step + 1 if step < 1 else step)


def test_a_schedule_that_goes_on_where_a_scaler_skips_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "skips", lambda optimizer: False)
    with pytest.raises(AssertionError):
        test_what_a_scaler_skips_advances_nothing()


def test_a_scaler_does_not_divide_the_decay() -> None:
    found = []
    for fused, scale in ((True, 1.0), (True, 1024.0), (False, 1024.0)):
        layer = built("sr_ste:decay=0.5")
        optimizer, scaler = adamw(layer, fused=fused), torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(layer(torch.ones(4, K)).square().mean()).backward()
        scaler.step(optimizer)
        found.append(storage_of(layer).parameter.detach().clone())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_what_is_added_is_of_what_the_mask_drops_and_comes_after_clipping() -> None:
    layer = built("sr_ste:decay=0.5")
    storage = storage_of(layer)
    w_NK, dropped_NK = storage.parameter.detach().clone(), ~mask_24(storage.parameter)
    layer(torch.ones(4, K)).sum().backward()
    nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)
    clipped = storage.parameter.grad.clone()  # type: ignore[union-attr]
    adamw(layer).step()
    torch.testing.assert_close(storage.parameter.grad, clipped + 0.5 * w_NK * dropped_NK)


def test_gradients_that_are_made_within_a_step_are_refused_where_something_is_added_to_them() -> None:
    for spec, refused in (("sr_ste", True), ("ste", False)):
        layer = built(spec)
        optimizer = adamw(layer)
        with pytest.raises(InputError, match="without a closure") if refused else nullcontext():
            optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
        optimizer.step()


@every_recipe
@pytest.mark.parametrize("tokens", [0, 1, 7, 33])
def test_any_number_of_tokens_and_gradients_of_zero(spec: str, tokens: int) -> None:
    layer = built(spec)
    x_BK = torch.randn(tokens, K).requires_grad_()
    y_BN = layer(x_BK)
    (y_BN * 0).sum().backward()
    assert y_BN.shape == (tokens, N)
    for grad in (x_BK.grad, *(parameter.grad for parameter in layer.parameters())):
        assert grad is not None
        assert not grad.any()
    adamw(layer).step()
    assert storage_of(layer).steps == 1
    assert layer.check() is None


def test_the_bias_by_an_optimizer_of_its_own_makes_no_step_of_w() -> None:
    layer = built("fst:every=1")
    weights, bias = (torch.optim.SGD([one], lr=0.1) for one in (storage_of(layer).parameter, layer.bias))
    train(layer, bias, range(2))
    assert storage_of(layer).steps == 0
    train(layer, weights, range(2))
    assert (storage_of(layer).steps, layer.check()) == (2, None)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fst:every=0", "every must lie in 1"),
        ("ste:every=-3", "every must lie in 1"),
        ("fst:dense_from=-1", "dense_from must lie in 0"),
        ("sr_ste:decay=-1", "decay must lie in 0"),
        ("sr_ste:decay=nan", "decay must lie in 0"),
        ("step:latest=-1", "latest must lie in 0"),
        ("pruned:dense_until=-1", "dense_until must lie in 0"),
        ("supermask:size=48", "size must be one of .* got size=48: nearest 32 and 64"),
        ("supermask:level=1", "level=1 drops all blocks"),
        ("supermask:level=-0.1", "level must lie in 0"),
        ("supermask:level=nan", "level must lie in 0"),
        ("fst:evry=4", "takes every, decay, dense_from, seed, not 'evry'"),
        ("fst:every=often", "a whole number"),
        ("fts", "Did you mean 'fst'"),
    ],
)
def test_what_a_recipe_cannot_be_is_said(spec: str, says: str) -> None:
    with pytest.raises((InputError, UnknownName), match=says):
        recipe_of(spec)


def test_a_state_of_another_recipe_or_of_another_size_is_refused() -> None:
    layer, other = built("sr_ste"), built("sr_ste:decay=0.5")
    train(layer, adamw(layer), range(3))
    with pytest.raises(RuntimeError, match=r"of the recipe sr_ste:every=1:decay=0.0002 after 3 steps, and this layer"):
        other.load_state_dict(layer.state_dict())
    assert storage_of(other).steps == 0
    state = layer.state_dict()
    del state["recipe_mask"]
    with pytest.raises(RuntimeError, match="recipe_mask must be"):
        built("sr_ste").load_state_dict(state)
    with pytest.raises(RuntimeError, match="and no recipe_counts"):
        built("sr_ste").load_state_dict({name: held for name, held in state.items() if name != "recipe_counts"})


@pytest.mark.parametrize(
    ("spec", "name", "value", "says"),
    [
        ("ste", "recipe_mask", torch.ones(N, K).bool(), "recipe_mask is no mask of ste.*row 0, group 0 keeps 4 of 4"),
        ("s_ste", "recipe_mask", torch.zeros(N, K).bool(), "recipe_mask is no mask.*keeps 0 of 4, must keep 2"),
        ("ste", "recipe_mask", torch.ones(N, K), "recipe_mask is no mask.*a mask is a boolean"),
        ("fst", "recipe_mask", (torch.arange(K) % 4 < 2).repeat(N, 1), "recipe_mask is no mask of fst"),
        ("fst", "recipe_counts", torch.tensor([-1, 0, 0]), "recipe_counts must be .* got -1, 0, 0"),
        ("fst", "recipe_counts", torch.tensor([0, 2**53 + 1, 0]), "got 0, 9007199254740993, 0"),
        ("step", "recipe_counts", torch.tensor([0, 0, 2]), "got 0, 0, 2"),
        ("dense", "recipe_counts", torch.tensor([0.5, 0, 0]), r"got \(3,\) of torch.float32"),
        ("dense", "recipe_counts", torch.tensor(3), r"got \(\) of torch.int64"),
        ("s_ste", "recipe_scale", torch.tensor(0.0).double(), "recipe_scale must be a positive number, got 0.0"),
        ("s_ste", "recipe_scale", torch.tensor(-2.0).double(), "got -2.0"),
        ("s_ste", "recipe_scale", torch.tensor(torch.nan).double(), "got nan"),
        ("s_ste", "recipe_scale", torch.tensor(torch.inf).double(), "got inf"),
        (BLOCKS, "recipe_scores", torch.full((4, 8), torch.nan), "recipe_scores must be finite numbers"),
        (BLOCKS, "recipe_scores", torch.zeros(4, 8).long(), "recipe_scores must be finite numbers"),
        (BLOCKS, "recipe_scores", torch.zeros(4, 4), r"recipe_scores must be \(4, 8\), as supermask:size=8"),
        ("ste", "recipe", torch.tensor([115, 255], dtype=torch.uint8), "recipe must be .* no UTF-8 at byte 1"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(spec: str, name: str, value: torch.Tensor, says: str) -> None:
    layer = built(spec)
    state = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    damaged = {key: tensor + 1 if key in ("weight", "bias") else tensor for key, tensor in state.items()}
    with pytest.raises(RuntimeError, match=says):
        layer.load_state_dict(damaged | {name: value})
    assert all(torch.equal(tensor, state[key]) for key, tensor in layer.state_dict().items())


@every_recipe
def test_masks_of_weights_that_decide_nothing_load_too(spec: str) -> None:
    layer = built(spec)
    if "recipe_scale" not in layer.state_dict():
        layer.load_state_dict({"weight": torch.zeros(N, K), "bias": torch.zeros(N)})
    layer.load_state_dict(layer.state_dict())


@every_recipe
def test_its_weights_load_into_a_linear_and_a_linears_begin_anew(spec: str) -> None:
    layer, linear = built(spec), nn.Linear(K, N)
    train(layer, adamw(layer), range(5))
    found = linear.load_state_dict(layer.state_dict(), strict=False)
    assert not found.missing_keys
    assert all(key.startswith("recipe") for key in found.unexpected_keys)
    assert torch.equal(linear.weight, storage_of(layer).parameter)
    assert torch.equal(layer.to_linear().weight, linear.weight)
    layer.load_state_dict(linear.state_dict())
    assert storage_of(layer).steps == 0
    if "recipe_mask" in layer.state_dict():
        assert torch.equal(storage_of(layer).mask_NK, recipe_of(spec).mask(linear.weight))


def test_shapes_that_have_no_groups_are_left_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(64, 30), nn.Linear(30, 64), nn.Linear(64, 32))
    assert replace_linears(model, "recipe-fst:every=2").left == {
        "0": "recipe fst:every=2: it cuts columns into groups of four too: N must be a multiple of 4, got 30",
        "1": "recipe fst:every=2: it cuts rows into groups of four: K must be a multiple of 4, got 30",
    }


def test_sizes_that_blocks_do_not_divide_are_left_with_the_nearest_that_do() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 60))
    assert replace_linears(model, "recipe-supermask").left == {
        "0": "recipe supermask: blocks of 64 do not divide N = 32, K = 64: the nearest size that does is 32",
        "1": "recipe supermask: blocks of 64 do not divide N = 60, K = 32, nor does any other size: the nearest that "
        "they divide are N = 64, K = 64",
    }
    with pytest.raises(InputError, match="the nearest size that does is 32"):
        built("supermask")


def test_a_layer_whose_weight_is_read_and_which_is_never_called_is_left_with_the_reason() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(K, 4, 2 * K, dropout=0.0, batch_first=True)
    model = nn.Sequential(encoder, SparseFFN(K, 2 * K))
    found = replace_linears(model, "recipe-ste")
    assert found.replaced == ("0.linear1", "0.linear2")
    assert {name: reason.split(" that ")[0] for name, reason in found.left.items()} == {
        "0.self_attn.out_proj": "the MultiheadAttention",
        "1.fc1": "the SparseFFN",
        "1.fc2": "the SparseFFN",
    }
    assert "reads its weight and never calls it" in found.left["1.fc1"]
    # torch's fast path reads weights too, and does not take those of replaced layers.
    x_SBK = torch.randn(3, 5, K)
    for module in (encoder, nn.TransformerEncoder(encoder, 1)):
        with torch.no_grad():
            right, found_SBK = module.train()(x_SBK), module.eval()(x_SBK)
        torch.testing.assert_close(found_SBK, right)


@every_recipe
def test_autocast_and_checkpointing_change_nothing(spec: str) -> None:
    plain, checkpointed = built(spec, torch.bfloat16), built(spec, torch.bfloat16)
    for layer, call in ((plain, plain), (checkpointed, lambda x: checkpoint(checkpointed, x, use_reentrant=False))):
        optimizer = adamw(layer)
        for step in range(6):
            x_BK = torch.randn(12, K, generator=torch.Generator().manual_seed(step)).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                loss = call(x_BK).float().square().mean()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert same(plain, checkpointed)


def test_on_the_sparse_cores_it_trains_as_with_zeros() -> None:
    for spec in SPECS:
        found = []
        for cores in (faked, None):
            with pytest.MonkeyPatch.context() if cores is None else cores():
                layer = built(spec, torch.bfloat16)
                takes = spec not in ("dense", EIGHT, BLOCKS)
                assert storage_of(layer).packed.kernel == ("cusparselt" if cores and takes else "dense")
                x_BK = torch.randn(12, K).bfloat16().requires_grad_()
                grads = []
                for _ in range(4):
                    y_BN = layer(x_BK)
                    grads += [y_BN, *torch.autograd.grad(y_BN.square().sum(), [x_BK, storage_of(layer).parameter])]
                    storage_of(layer).parameter.grad = grads[-1].sign()
                    torch.optim.SGD(layer.parameters(), lr=0.01).step()
                    assert layer.check() is None
                found.append(grads)
        torch.testing.assert_close(*found, rtol=0.02, atol=0.05)


def _on_replicas(specs: tuple[str, ...]) -> list[list[torch.Tensor]]:
    states = []
    for spec in specs:
        layer = built(spec)
        model = DistributedDataParallel(nn.Sequential(layer))
        optimizer = adamw(model)
        for step in range(5):
            x_BK = torch.randn(12, K, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
            optimizer.zero_grad()
            (model(x_BK) - x_BK[:, :N]).square().mean().backward()
            optimizer.step()
        states.append(list(layer.state_dict().values()))
    return states


def test_replicas_have_the_same_bits(cpu_ranks: Ranks) -> None:
    first, second = cpu_ranks.run(_on_replicas, SPECS)
    for spec, one, other in zip(SPECS, first, second, strict=True):
        assert all(map(torch.equal, one, other)), spec


def test_compiled_it_gives_what_it_gives() -> None:
    for spec in ("fst", BLOCKS):
        torch._dynamo.reset()
        layer = built(spec)
        x_BK = torch.randn(12, K).requires_grad_()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            expected, found = (torch.autograd.grad(one(x_BK).square().sum(), x_BK)[0] for one in (layer, compiled))
            torch.testing.assert_close(found, expected)
            layer.zero_grad()
            compiled(x_BK).square().sum().backward()
            adamw(layer).step()


def test_fields_of_a_recipe_are_all_in_what_it_is_called() -> None:
    for spec in SPECS:
        told = storage_of(built(spec)).state()["recipe"]
        kind: Any = RECIPES.resolve(spec)[0]
        assert bytes(told.tolist()).decode().count(":") == len(fields(kind))


def test_step_is_sparse_from_the_step_at_which_its_optimizer_switches() -> None:
    layer = built("step:latest=100")
    storage = storage_of(layer)
    optimizer = StepAdamW(layer.parameters(), lr=0.01, least=3, most=5)
    for step in range(8):
        was_switched = optimizer.switched
        assert storage.is_sparse == was_switched
        train(layer, optimizer, range(step, step + 1))
        w_NK = storage.parameter.detach()
        assert torch.equal(storage.packed.values, w_NK.where(mask_24(w_NK), 0) if optimizer.switched else w_NK)
    assert optimizer.switched
    other = built("step:latest=100")
    other.load_state_dict(layer.state_dict())
    assert storage_of(other).is_sparse, "the layer's state has it, too"


def test_the_control_is_no_subject_and_each_recipe_is_one() -> None:
    kind, picks = METHODS.get("recipe"), [{}, *({"recipe": spec} for spec in SPECS)]
    roles = {picked.get("recipe"): kind.plays(picked) for picked in picks}
    assert roles == dict.fromkeys((None, "dense"), Role.ABLATION) | dict.fromkeys(set(SPECS) - {"dense"}, Role.SUBJECT)
    case = Case("recipe", {"recipe": "dense"}, "gaussian", N, K, 4, "fp32", optimizer="adamw")
    saved = [describe_case(3, one, "cpu", 1)["role"] for one in (case, case.picking(recipe="fst"))]
    assert saved == ["ablation", "subject"]
