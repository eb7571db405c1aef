"""W′ of tiles that inputs decide on trains as that of ``tile_magnitude`` does: backward is 2:4 too, and stays so."""

from __future__ import annotations

import pytest
import torch
from calibrated import some_inputs
from fake_cusparselt import faked
from torch import nn

from blockshock import replace_linears
from blockshock.kernels.backward import TransposedBackward
from blockshock.machine import Alone
from blockshock.matrices import TensorWeights, check_transposable
from blockshock.methods import METHODS, Layer
from blockshock.pruning import PRUNERS
from blockshock.training import Training

TILES = [name for name in PRUNERS.names() if PRUNERS.get(name).transposable]


@pytest.mark.parametrize("pruner", TILES)
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_the_backward_product_is_sparse(pruner: str, storage: str) -> None:
    source = TensorWeights(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).bfloat16())
    picks = {"kernel": "cusparselt:search=no", "pruner": pruner, "storage": storage}
    with faked():
        x_TK = some_inputs(80, 128).bfloat16()
        layer = Layer(source, picks, 64, True, Training(), lambda: x_TK)
        method = METHODS.get("pruned")(layer, Alone())
        assert [type(packed.backward) for packed in method.packings()] == [TransposedBackward]
        assert "dense" not in method.algorithm
        x_BK = some_inputs(64, 128).bfloat16().requires_grad_()
        grad_BN = torch.ones(64, 64).bfloat16()
        method(x_BK).backward(grad_BN)
        own_NK = method.reference(layer, 1).rows(0, 64)
        torch.testing.assert_close(x_BK.grad, grad_BN @ own_NK, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pruner", TILES)
def test_a_model_learns_and_its_masks_stay(pruner: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    x, hidden = torch.randn(256, 32), torch.randn(256, 64).relu()
    replace_linears(model, f"pruned-reference-{pruner}-compressed", inputs={"0": x, "2": hidden})
    kept = [layer.mask.dense() for layer in (model[0], model[2])]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), x.flip(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for layer, mask_NK in zip((model[0], model[2]), kept, strict=True):
        check_transposable(layer.mask)
        assert not layer.to_linear().weight[~mask_NK].any()
