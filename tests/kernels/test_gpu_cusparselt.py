"""cuSPARSELt on the GPUs it is for: what its search finds, in compiled code, and on a machine's second GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpus import needs_a_gpu, needs_two_gpus
from inner_pytest import environment
from strategies import matrix
from torch import nn

from blockshock import BlockShockLinear
from blockshock.errors import InputError
from blockshock.kernels import build_kernel, cusparselt
from blockshock.kernels.cusparselt_helper import Searcher
from blockshock.kernels.cusparselt_search import Request, identity
from blockshock.kernels.octaves import bucket_of, octave_of
from blockshock.machine.collectives import Alone
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights


@pytest.fixture
def searcher() -> Iterator[Searcher]:
    """One whose helper ends with the test."""
    made = Searcher()
    yield made
    made._discard()


@pytest.mark.gpu
@needs_a_gpu
def test_the_helpers_search_checks_what_it_finds(searcher: Searcher) -> None:
    gpu = identity(torch.device("cuda"))
    found = searcher.search(Request(1024, 2048, 256, 136, "bfloat16", True, gpu))
    print(found.name)
    assert found.setting is not None
    assert not found.failed
    assert (0, 1, -1) not in found.turned_away


@pytest.mark.gpu
@needs_a_gpu
def test_in_eight_bits_every_octave_can_be_searched(searcher: Searcher) -> None:
    """A search that fails leaves the default algorithm, which is right, and up to three times as slow."""
    gpu = identity(torch.device("cuda"))
    for dtype, to in (("int8", "bfloat16"), ("int8", "int32"), ("float8_e4m3fn", "bfloat16")):
        if dtype.startswith("float8") and torch.cuda.get_device_capability() < (8, 9):
            continue
        for tokens in (1, 9, 20, 100, 1000):
            least, most = octave_of(tokens, cusparselt.BYTES_TOKENS_MULTIPLE)
            found = searcher.search(Request(1024, 2048, most, least, dtype, False, gpu, to))
            assert not found.failed, f"{dtype} to {to}, {tokens} tokens: {found.name}"


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("mask", ["random", "tile_random"])
def test_an_octaves_algorithm_is_right_for_every_length_in_it(
    mask: str, searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Nor what this process remembers: other tests searched too.
    fits = cusparselt._algorithms._fits
    monkeypatch.setattr(cusparselt, "_algorithms", cusparselt.AlgorithmCache("cusparselt-checked", fits))
    asked: list[Request] = []

    def search(request: Request) -> Any:
        asked.append(request)
        return searcher.search(request)

    monkeypatch.setattr(cusparselt._searcher, "search", search)
    weight = matrix(1024, 512, torch.bfloat16, 0, device="cuda")
    source = TensorWeights(weight, matrix(1, 1024, torch.bfloat16, 1, device="cuda")[0])
    half = Piece(source, slice(0, 512), build_mask(mask, source))
    packed = build_kernel("cusparselt").pack(half, source.bias, backward=True)
    w_NK, bias = half.dense().double(), source.bias
    assert bias is not None
    for B in (*range(1, 130), 200, 256, 300, 511, 512, 600, 1000, 1024):
        x_BK = matrix(B, 512, torch.bfloat16, B, "whole", "cuda")
        grad_y_BN = matrix(B, 1024, torch.bfloat16, B, "part", "cuda")
        for found, given_BK, w_KN, added in (
            (packed(x_BK), x_BK, w_NK.T, bias.double()),
            (packed.grad_input(grad_y_BN), grad_y_BN, w_NK, torch.zeros((), device="cuda").double()),
        ):
            # The algorithm may split the sum, and round each part.
            x64 = given_BK.double()
            bound = torch.finfo(torch.bfloat16).eps * (x64.abs() @ w_KN.abs() + added.abs())
            assert bool(((found.double() - x64 @ w_KN - added).abs() <= bound).all()), f"B = {B}: {packed.algorithm}"
    searched = [request.tokens for request in asked if request.bias]
    assert searched == [8, 16, 32, 64, 128, 256, 512, 1024] == sorted({bucket_of(B) for B in range(1, 1025)})
    print(packed.algorithm)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.filterwarnings("ignore")  # compilers say this and that
def test_a_compiled_layer_takes_slices_on_one_gpu() -> None:
    linear = nn.Linear(512, 256, device="cuda", dtype=torch.bfloat16)
    layer = BlockShockLinear(linear, Alone(), kernel="cusparselt:search=no")
    compiled = torch.compile(layer)
    x = torch.randn(48, 1100, device="cuda", dtype=torch.bfloat16)
    for part in (x[:, :512], x[:, 513:1025], x[::3, :512]):
        ours, dense = part.detach().requires_grad_(), part.detach().requires_grad_()
        y, wanted = compiled(ours), linear(dense)
        torch.testing.assert_close(y, wanted, rtol=0.05, atol=0.05)
        y.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(ours.grad, dense.grad, rtol=0.05, atol=0.05)


def test_an_input_on_another_device_is_refused() -> None:
    layer = BlockShockLinear(nn.Linear(16, 8), Alone())
    with pytest.raises(InputError, match=r"x must be torch\.float32 on cpu, got torch\.float32 on meta"):
        layer(torch.zeros(2, 16, device="meta"))


_TWO_GPUS = """
import torch
from torch import nn
from blockshock import BlockShockLinear
from blockshock.machine.collectives import Alone
from blockshock.errors import InputError, KernelUnavailable

def layer_on(device, kernel):
    linear = nn.Linear(512, 256, device=device, dtype=torch.bfloat16)
    return linear, BlockShockLinear(linear, Alone(), kernel=kernel, mask="tile")

def trains(linear, layer, device):
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (linear, layer)]
    for step in range(3):
        x = torch.randn(16, 1024, device=device, dtype=torch.bfloat16)[:, 512:]
        outputs = []
        for model, optimizer in zip((linear, layer), optimizers):
            optimizer.zero_grad()
            outputs.append(model(x))
            outputs[-1].float().square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)

assert torch.cuda.current_device() == 0
first = layer_on("cuda:1", "cusparselt")
trains(*first, "cuda:1")
for device in ("cuda:0", "cuda:1"):
    trains(*layer_on(device, "gathered"), device)
    trains(*layer_on(device, "reference"), device)
try:
    layer_on("cuda:0", "cusparselt")
except KernelUnavailable as error:
    assert "serves one device a thread" in str(error), error
else:
    raise SystemExit("no error")
trains(*layer_on("cuda:0", "auto:search=no"), "cuda:0")
trains(*first, "cuda:1")
with torch.cuda.device(1):
    trains(*first, "cuda:1")
try:
    first[1](torch.ones(8, 512, device="cuda:0", dtype=torch.bfloat16))
except InputError as error:
    assert "on cuda:1, got torch.bfloat16 on cuda:0" in str(error), error
else:
    raise SystemExit("no error for an x elsewhere")
torch.cuda.synchronize(0)
torch.cuda.synchronize(1)
print("done")
"""


@pytest.mark.gpu2
@needs_two_gpus
def test_a_layer_on_the_second_gpu_is_right_and_a_second_device_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TWO_GPUS], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr
