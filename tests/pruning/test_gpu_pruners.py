"""Pruners on a GPU: what they take for the layers of a model of 7 billion parameters, and the same W′ as on a CPU."""

from __future__ import annotations

import time

import pytest
import torch
from calibrated import CALIBRATED
from gpus import needs_a_gpu
from torch import nn

from blockshock import MethodLinear, replace_linears
from blockshock.machine import memory
from blockshock.matrices import GeneratedWeights, Piece, TensorWeights, check_2to4
from blockshock.measure import lost
from blockshock.pruning import CALIBRATION_TOKENS, PRUNERS, PrunedWeights, prune
from blockshock.pruning.pruned import pruning_bytes

pytestmark = [pytest.mark.gpu, needs_a_gpu]
TILES = [name for name in CALIBRATED if PRUNERS.get(name).transposable]


def _inputs(T: int, K: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Of channels that go together: a few directions, and noise."""
    stream = torch.Generator(device).manual_seed(seed)
    mixing_DK = torch.randn(K // 16, K, device=device, generator=torch.Generator(device).manual_seed(99))
    x_TK = torch.randn(T, K // 16, device=device, generator=stream) @ mixing_DK * (K // 16) ** -0.5
    return (x_TK + 0.5 * torch.randn(T, K, device=device, generator=stream)).bfloat16()


@pytest.mark.parametrize("name", ["magnitude", *CALIBRATED])
@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (11008, 4096)])
def test_a_layer_of_7_billion_parameters(name: str, N: int, K: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds are printed; memory is held to what is said, with a tenth for what an allocator rounds up."""
    device = torch.device("cuda", torch.cuda.current_device())
    x_TK = _inputs(CALIBRATION_TOKENS, K, device)
    prune(name, Piece(GeneratedWeights(64, 64, torch.bfloat16, device)), lambda: x_TK[:, :64])  # libraries are loaded
    piece = Piece(GeneratedWeights(N, K, torch.bfloat16, device))
    torch.cuda.empty_cache()
    with memory.peak_bytes(device) as peak:
        start = time.perf_counter()
        found = prune(name, piece, lambda: x_TK)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    said = pruning_bytes(name, N, K, K, 2)
    error = lost(_inputs(512, K, device, seed=1), piece.source, found, 0, 1).quality()["output_error"]
    with capsys.disabled():
        text = f"{seconds:.1f} s, {memory.gib(peak[0])} of {memory.gib(said)} said, loses {error:.3f} of the output"
        print(f"\n{name} {N}×{K}: {text}")
    check_2to4(found.mask)
    assert 0 < error < 0.6
    assert peak[0] <= 1.1 * said + (64 << 20)
    assert peak[0] >= 0.1 * said


@pytest.mark.parametrize("name", CALIBRATED)
def test_it_is_the_same_as_on_a_cpu(name: str) -> None:
    device, cpu = torch.device("cuda"), torch.device("cpu")
    w_NK = torch.randn(96, 132, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_TK = _inputs(80, 132, cpu).double()
    wanted = prune(name, Piece(TensorWeights(w_NK)), lambda: x_TK)
    found = prune(name, Piece(TensorWeights(w_NK.to(device))), lambda: x_TK.to(device))
    assert torch.equal(found.mask.dense().cpu(), wanted.mask.dense())
    torch.testing.assert_close(found.rows(0, 96).cpu(), wanted.rows(0, 96), rtol=1e-6, atol=1e-9)


def test_who_changes_what_stays_loses_less() -> None:
    device = torch.device("cuda")
    piece, x_TK = Piece(GeneratedWeights(1024, 1024, torch.bfloat16, device)), _inputs(512, 1024, device)
    unseen_TK = _inputs(512, 1024, device, seed=1)
    found = [
        lost(unseen_TK, piece.source, prune(name, piece, lambda: x_TK), 0, 1).quality()["output_error"]
        for name in ("alps", "sparsegpt", "wanda", "random")
    ]
    assert found == sorted(found), found


@pytest.mark.parametrize("pruner", TILES)
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_tiles_train_with_both_products_sparse(pruner: str, storage: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 256)).to(device)
    x_BK = torch.randn(256, 512, device=device)
    row = f"pruned-cusparselt:search=no-{pruner}-{storage}"
    replace_linears(model, row, dtype=torch.bfloat16, tokens=256, inputs={"0": x_BK})
    layer = model[0]
    assert isinstance(layer, MethodLinear)
    assert "dense" not in str(layer)
    dense = layer.to_linear().to(device)
    mask_NK = dense.weight != 0
    for trained in (layer, dense):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            trained(x_BK).float().square().mean().backward()
            if trained is dense:
                dense.weight.grad *= mask_NK
            optimizer.step()
    torch.testing.assert_close(layer.to_linear().weight, dense.weight, rtol=0.02, atol=2e-3)


def test_what_is_held_is_let_go() -> None:
    """Of a pruner nothing stays but W′."""
    device = torch.device("cuda", torch.cuda.current_device())
    x_TK, piece = _inputs(256, 1024, device), Piece(GeneratedWeights(512, 1024, torch.bfloat16, device))
    prune("alps", piece, lambda: x_TK)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    found = prune("alps", piece, lambda: x_TK)
    assert torch.cuda.memory_allocated() - before <= PrunedWeights.held_bytes(found.N, found.K, 2) + (1 << 20)
