"""Recipes on a GPU: by the sparse tensor cores what dense products with zeros give, and in a CUDA graph too."""

from __future__ import annotations

import pytest
import torch
from gpus import needs_a_gpu
from torch import nn

from blockshock import MethodLinear, SparseFFN
from blockshock.training import RECIPES, RecipeStorage, recipe_of
from blockshock.training.recipes import blocks, eight_bits, packing
from blockshock.training.recipes.estimators import drawn, stream
from blockshock.training.recipes.packing import times_24
from blockshock.training.sparse import bits_of_mask, mask_24, mvue_24, transposable_mask

pytestmark = [pytest.mark.gpu, needs_a_gpu]
N, K = 256, 512
LAYERS = (*RECIPES.names(), "s_ste:bits=8")
BLOCKS = ("activation", "activation:where=post:act=gelu", "activation:masks=rows", "dropout24")


def _layer(spec: str) -> MethodLinear:
    torch.manual_seed(0)
    return MethodLinear(nn.Linear(K, N, device="cuda"), f"recipe-{spec}", dtype=torch.bfloat16)


def _storage(layer: MethodLinear) -> RecipeStorage:
    (storage,) = layer.layer.storages()
    assert isinstance(storage, RecipeStorage)
    return storage


def _trained(spec: str, tokens: int) -> list[torch.Tensor]:
    """Outputs and gradients of three steps whose gradients are given, so that both ways take the same."""
    layer, found = _layer(spec), []
    for step in range(3):
        torch.manual_seed(step)
        x_BK = torch.randn(tokens, K, device="cuda", requires_grad=True)
        y_BN = layer(x_BK)
        y_BN.backward(torch.randn_like(y_BN))
        storage = _storage(layer)
        found += [y_BN.detach(), x_BK.grad, storage.parameter.grad]
        torch.manual_seed(100 + step)
        storage.parameter.grad = torch.randn_like(storage.parameter)
        torch.optim.SGD(layer.parameters(), lr=0.01).step()
        assert layer.check() is None
    return found


@pytest.mark.parametrize("tokens", [1, 100, 4096])
@pytest.mark.parametrize("spec", [*LAYERS, "fst:every=2", "supermask:size=16:level=0.5"])
def test_the_sparse_cores_give_what_zeros_give(spec: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _trained(spec, tokens)
    for takes in ("sparse_cores", "bsr_takes"):
        monkeypatch.setattr(packing, takes, lambda *_: False)
    monkeypatch.setattr(eight_bits, "multiplies", lambda *_: False)
    for one, other in zip(found, _trained(spec, tokens), strict=True):
        error = ((one.double() - other.double()).norm() / other.double().norm()).item()
        assert error < 0.01, (spec, tokens, error)


@pytest.mark.parametrize("shape", [(64, 64), (256, 448)])
def test_the_best_tiles_are_found_in_one_pass(shape: tuple[int, int]) -> None:
    w_NK = torch.randn(shape, device="cuda")
    recipe = recipe_of("fst")
    assert torch.equal(recipe.mask(w_NK.bfloat16().float()), transposable_mask(w_NK.bfloat16()))
    mask_NK = recipe.mask(w_NK)
    assert torch.equal(recipe.mask_bits(w_NK), bits_of_mask(mask_NK))
    assert torch.equal(recipe_of("ste").mask_bits(w_NK), bits_of_mask(mask_24(w_NK)))
    kept, most = ((w_NK.abs() * mask).sum().item() for mask in (mask_NK, transposable_mask(w_NK)))
    assert most * (1 - 1e-4) < kept <= most * (1 + 1e-6)
    assert (mask_NK.unflatten(0, (-1, 4)).sum(1) == 2).all()


def test_draws_in_one_pass_are_on_average_the_gradient() -> None:
    grad_BN = torch.randn(100, N, device="cuda", dtype=torch.bfloat16)
    draws = torch.stack([drawn(grad_BN, stream(grad_BN.device, 0, draw)) for draw in range(400)]).double()
    assert draws.shape == (400, N, 100)
    assert (draws.unflatten(2, (-1, 4)) != 0).sum(-1).max() <= 2
    error, spread = draws.mean(0) - grad_BN.T.double(), draws.std(0) / 20
    assert error.norm() < 1.1 * spread.norm()


@pytest.mark.parametrize("tokens", [16, 48, 4096])
def test_a_sampled_gradient_is_multiplied_right_whatever_lies_where(tokens: int) -> None:
    grad_NB = mvue_24(torch.randn(N, tokens, device="cuda", dtype=torch.bfloat16))
    wide_BK = torch.randn(tokens, 2 * K, device="cuda", dtype=torch.bfloat16)
    for x_BK in (wide_BK[:, :K], wide_BK[:, 8 : K + 8], wide_BK[:, 1 : K + 1], wide_BK[:, :K].contiguous()):
        right_NK = grad_NB.double() @ x_BK.double()
        error = (
            times_24(grad_NB, x_BK, torch.float32, "columns", "grad_w").double() - right_NK
        ).norm() / right_NK.norm()
        assert error.item() < 0.01


# Of the few blocks that supermask keeps by itself, others come in faster than they are trained.
@pytest.mark.parametrize("spec", [spec.replace("supermask", "supermask:size=16:level=0.5") for spec in LAYERS])
def test_a_step_is_captured_and_replayed(spec: str) -> None:
    layer = _layer(spec)
    storage = _storage(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=True, capturable=True)
    x_BK, target_BN = torch.randn(64, K, device="cuda"), torch.randn(64, N, device="cuda")

    def step() -> torch.Tensor:
        loss = (layer(x_BK) - target_BN).float().square().mean()
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        for parameter, grad in zip(layer.parameters(), grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first, *_ = [step().item() for _ in range(3)]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(30):
        graph.replay()
    torch.cuda.synchronize()
    assert loss.item() < first
    storage.refresh()
    assert layer.check() is None


@pytest.mark.parametrize("tokens", [1, 100, 4096])
@pytest.mark.parametrize(
    "recipe",
    [
        *("activation", "activation:where=post:act=gelu", "activation:masks=rows", "activation:masks=rows:dense=0.3"),
        *("activation:masks=rows:dense=0.5:where=post:act=gelu", "activation:masks=rows:dense=1.0", "dropout24"),
    ],
)
def test_a_block_on_the_sparse_cores_gives_what_zeros_give(
    recipe: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ffn = SparseFFN(K, 4 * K, recipe, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad_y = torch.randn(tokens, K, device="cuda", dtype=torch.bfloat16)
    found = []
    for cores in (True, False):
        if not cores:
            for module in (packing, blocks):
                monkeypatch.setattr(module, "sparse_cores", lambda *_: False)
        torch.manual_seed(1)
        y = ffn(x)
        found.append([y.detach(), *torch.autograd.grad(y, [x, *ffn.parameters()], grad_y)])
    for one, other in zip(*found, strict=True):
        error = ((one.double() - other.double()).norm() / other.double().norm()).item()
        assert error < 0.02, (recipe, tokens, error)
