"""Trained scores of blocks, beside SuperBlock's definition in float64: masks, gradients, and what of them is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_bsr import faked
from torch import nn

from blockshock import MethodLinear, load_optimizer_state, optimizer_state
from blockshock.methods import Shape
from blockshock.training import RecipeStorage, Training
from blockshock.training.recipes import storage as storage_module
from blockshock.training.recipes.packed_blocks import BlocksAnew
from blockshock.training.recipes.supermask import Supermask

N, K, SIZE = 32, 64, 8
SPEC = f"supermask:size={SIZE}"


def built(spec: str = f"{SPEC}:level=0.5", dtype: torch.dtype = torch.float64) -> tuple[MethodLinear, RecipeStorage]:
    torch.manual_seed(0)
    layer = MethodLinear(nn.Linear(K, N, dtype=dtype), f"recipe-{spec}")
    (storage,) = layer.layer.storages()
    assert isinstance(storage, RecipeStorage)
    return layer, storage


def in_place(scores_RC: torch.Tensor) -> torch.Tensor:
    """Of each block what is its, as (N, K)."""
    return torch.kron(scores_RC, torch.ones(SIZE, SIZE, dtype=scores_RC.dtype))


def defined(x_BK: torch.Tensor, w_NK: torch.Tensor, scores_RC: torch.Tensor, level: float) -> torch.Tensor:
    """x (mask ⊙ W)ᵀ whose gradient goes straight through both products and the threshold."""
    count = scores_RC.numel()
    quantile = scores_RC.detach().flatten().kthvalue(1 + round(level * (count - 1))).values
    mask_NK = in_place((scores_RC.detach() >= quantile).double())
    straight = w_NK + in_place(scores_RC)  # whose derivative is that of the scores, by a sum over each block
    return x_BK @ (straight + (mask_NK * w_NK - straight).detach()).T


def worst(level: float = 0.5) -> float:
    """The farthest that output, gradients and mask of five steps are from the definition, relative."""
    layer, storage = built(f"{SPEC}:level={level}")
    optimizer, found = torch.optim.AdamW(layer.parameters(), lr=0.05), []
    assert storage.scores is not None
    for step in range(5):
        x_BK = torch.randn(12, K, generator=torch.Generator().manual_seed(step), dtype=torch.float64).requires_grad_()
        leaves = [x_BK.detach().clone(), storage.parameter.detach().clone(), storage.scores.detach().clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        right_BN = defined(*leaves, level)
        y_BN = layer(x_BK) - layer.bias
        optimizer.zero_grad()
        for one in (y_BN, right_BN):
            (one - x_BK.detach()[:, :N]).square().sum().backward()
        pairs = [
            (y_BN, right_BN),
            *zip((x_BK.grad, storage.parameter.grad, storage.scores.grad), [leaf.grad for leaf in leaves], strict=True),
        ]
        found += [((one - other).norm() / other.norm()).item() for one, other in pairs]  # type: ignore[operator, union-attr]
        optimizer.step()
    return max(found)


def test_it_is_what_its_definition_says_in_float64() -> None:
    for level in (0.0, 0.5, 0.9, 0.99):
        assert worst(level) < 1e-12, level


def masked_gradients(patch: pytest.MonkeyPatch) -> None:
    plain = RecipeStorage.grad_weight
    patch.setattr(RecipeStorage, "grad_weight", lambda self, grad, x: plain(self, grad, x) * self.mask_NK)


def mean_of_a_block(patch: pytest.MonkeyPatch) -> None:
    plain = Supermask.grad_scores
    patch.setattr(Supermask, "grad_scores", lambda self, grad_NK: plain(self, grad_NK) / self.size**2)


def the_smallest_scores(patch: pytest.MonkeyPatch) -> None:
    plain = Supermask.of_scores
    patch.setattr(Supermask, "of_scores", lambda self, scores: plain(self, -scores))


def masks_that_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecipeStorage, "_take_mask", lambda self: None)


@pytest.mark.parametrize("fault", [masked_gradients, mean_of_a_block, the_smallest_scores, masks_that_stay])
def test_what_is_something_else_is_found(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        assert worst() > 1e-3


def test_as_many_blocks_stay_whatever_the_scores_are() -> None:
    recipe = Supermask(size=SIZE, level=0.75)
    for scores_RC in (torch.zeros(4, 8), torch.arange(32.0).view(4, 8) // 5, torch.randn(4, 8)):
        mask_NK = recipe.spread(recipe.of_scores(scores_RC))
        assert mask_NK.shape == (N, K)
        assert mask_NK.sum() == (32 - round(0.75 * 31)) * SIZE**2
        kept, dropped = (scores_RC[mask_NK[::SIZE, ::SIZE] == which] for which in (True, False))
        assert kept.min() >= dropped.max()


def test_one_block_is_a_mask_too() -> None:
    layer, storage = built("supermask:size=32", torch.float32)
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.1), range(2))
    assert storage.mask_NK.sum() == 32 * 32  # type: ignore[union-attr]
    assert Supermask(size=64).spread(torch.ones(1, 1, dtype=torch.bool)).is_contiguous()


def test_scores_begin_uniform_the_same_for_a_seed_and_a_weight_and_others_for_others() -> None:
    torch.manual_seed(0)
    w_NK, other_NK = torch.randn(2, 256, 512)
    scores_RC = Supermask(size=SIZE).scores(w_NK)
    assert scores_RC.abs().max() <= 64**-0.5
    assert scores_RC.std().item() == pytest.approx((64 * 3) ** -0.5, rel=0.05)
    assert torch.equal(scores_RC, Supermask(size=SIZE).scores(w_NK.double()).float())
    for other_RC in (Supermask(size=SIZE).scores(other_NK), Supermask(size=SIZE, seed=1).scores(w_NK)):
        assert (scores_RC != other_RC).all()


def trained(layer: MethodLinear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x_BK = torch.randn(12, K, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (layer(x_BK) - x_BK[:, :N]).square().mean().backward()
        optimizer.step()


def resumed(left_out: str | None = None) -> bool:
    """Whether a run that is resumed has the bits of one that went on; of an optimizer whose state lacks a parameter."""
    layer, _ = built(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
    trained(layer, optimizer, range(4))
    state: dict[str, Any] = optimizer_state(layer, optimizer)
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    trained(layer, optimizer, range(4, 8))
    other, _ = built(dtype=torch.float32)
    other.load_state_dict(saved)
    again = torch.optim.AdamW(other.parameters(), lr=0.05)
    if left_out is not None:
        del state["state"][left_out]
    load_optimizer_state(other, again, state)
    trained(other, again, range(4, 8))
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in layer.state_dict().items())


def test_scores_and_what_an_optimizer_keeps_of_them_are_saved() -> None:
    assert resumed()
    assert not resumed(left_out="recipe_scores")
    layer, _ = built()
    state = layer.state_dict()
    assert "recipe_mask" not in state, "it is that of the scores"
    del state["recipe_scores"]
    with pytest.raises(RuntimeError, match="recipe_scores must be"):
        layer.load_state_dict(state)


def test_the_mask_is_that_of_the_scores_whoever_changes_them() -> None:
    layer, storage = built(dtype=torch.float32)
    assert storage.scores is not None
    alone = torch.optim.SGD([storage.scores], lr=100.0)
    before_NK = storage.mask_NK.clone()  # type: ignore[union-attr]
    trained(layer, alone, range(3))
    assert not torch.equal(storage.mask_NK, before_NK)  # type: ignore[arg-type]
    assert torch.equal(storage.mask_NK, storage.recipe.spread(storage.recipe.of_scores(storage.scores)))  # type: ignore[arg-type]
    assert (storage.steps, layer.check()) == (0, None)
    storage.scores.data.neg_()
    with pytest.raises(RuntimeError, match="the mask is not that of its scores"):
        layer.check()
    layer.refresh()
    assert layer.check() is None


def test_what_is_frozen_trains_no_scores() -> None:
    linear = nn.Linear(K, N)
    linear.weight.requires_grad_(False)
    layer = MethodLinear(linear, f"recipe-{SPEC}")
    assert [name for name, held in layer.named_parameters() if held.requires_grad] == ["layer.weight.bias"]


def grad_of_scores(frozen: bool) -> torch.Tensor | None:
    """Beside a W that is frozen, or trained."""
    layer, storage = built()
    assert storage.scores is not None
    storage.parameter.requires_grad_(not frozen)
    x_BK = torch.randn(12, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer(x_BK).square().sum().backward()
    assert (storage.parameter.grad is None) == frozen
    return storage.scores.grad


def test_scores_beside_frozen_weights_have_the_same_gradient_without_that_of_w(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.testing.assert_close(grad_of_scores(frozen=True), grad_of_scores(frozen=False), rtol=1e-12, atol=1e-12)
    layer, storage = built()
    storage.parameter.requires_grad_(False)
    before, w_NK = storage.mask_NK, storage.parameter.clone()
    assert before is not None
    before = before.clone()
    optimizer = torch.optim.SGD([held for held in layer.parameters() if held.requires_grad], lr=1.0)
    monkeypatch.setattr(storage_module, "product", lambda *_: pytest.fail("∇W is made"))
    layer(torch.ones(12, K, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(storage.mask_NK, before)  # type: ignore[arg-type]
    assert torch.equal(storage.parameter, w_NK)
    assert layer.check() is None


def steps_in_bf16(size: int) -> tuple[str, list[torch.Tensor]]:
    """What multiplies, and outputs and gradients of steps whose gradients are given, so that all ways take the same."""
    torch.manual_seed(0)
    layer, found = MethodLinear(nn.Linear(128, 96), f"recipe-supermask:size={size}:level=0.6", dtype=torch.bfloat16), []
    (storage,) = layer.layer.storages()
    for step in range(4):
        x_BK = torch.randn(20, 128, generator=torch.Generator().manual_seed(step)).requires_grad_()
        y_BN = layer(x_BK)
        parameters = [x_BK, storage.parameter, storage.scores]
        found += [y_BN, *torch.autograd.grad(y_BN.float().square().sum(), parameters)]
        storage.parameter.grad, storage.scores.grad = found[-2].sign(), found[-1].sign()  # type: ignore[union-attr]
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        assert layer.check() is None
    again = copy.deepcopy(layer)
    found += [again(x_BK), layer(torch.zeros(0, 128))]
    return storage.packed.kernel, found  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_kernel_of_blocks_gives_what_zeros_give(size: int) -> None:
    (kernel, found), (plain, right) = (_in(context, size) for context in (faked, nullcontext))
    assert (kernel, plain) == ("dense" if size < 16 else "bsr", "dense")
    torch.testing.assert_close(found, right, rtol=0.02, atol=0.05)


def _in(context: Callable[[], Any], size: int) -> tuple[str, list[torch.Tensor]]:
    with context():
        return steps_in_bf16(size)


def blocks_that_stay(patch: pytest.MonkeyPatch) -> None:
    plain = BlocksAnew.take

    def take(self: BlocksAnew, w_NK: torch.Tensor, mask_NK: torch.Tensor) -> None:
        columns = self.columns.clone()
        plain(self, w_NK, mask_NK)
        self.columns.copy_(columns)

    patch.setattr(BlocksAnew, "take", take)


def blocks_of_w_not_turned(patch: pytest.MonkeyPatch) -> None:
    plain = BlocksAnew.take

    def take(self: BlocksAnew, w_NK: torch.Tensor, mask_NK: torch.Tensor) -> None:
        plain(self, w_NK, mask_NK)
        self.blocks.copy_(self.blocks.mT.clone())

    patch.setattr(BlocksAnew, "take", take)


@pytest.mark.parametrize("fault", [blocks_that_stay, blocks_of_w_not_turned])
def test_blocks_that_are_wrong_are_found(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    _, right = steps_in_bf16(16)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        _, found = _in(faked, 16)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, right, rtol=0.02, atol=0.05)


def test_what_blocks_hold_is_what_is_estimated() -> None:
    spec, training = "supermask:size=16:level=0.6", Training(torch.float32)
    with faked():
        layer = MethodLinear(nn.Linear(256, 128, bias=False), f"recipe-{spec}", dtype=torch.bfloat16).layer
    shape = Shape(128, 256, 2, 1, True, training, picks={"recipe": spec, **layer.resolved})
    assert type(layer).estimate(shape).steady == layer.weight_bytes()
    assert type(layer).estimate(shape).trained == sum(held.numel() for held in layer.parameters())
