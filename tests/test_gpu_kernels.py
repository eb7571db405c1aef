"""Kernels and layers fuzzed on the device that they are for, beside float64: every layout, mask, dtype and length."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from fuzzing import examples
from gpus import needs_a_gpu, needs_two_gpus
from hypothesis import given
from hypothesis import strategies as st
from inner_pytest import environment
from strategies import FLOATS, LAYOUTS, mask_rows, matrix
from torch import nn

from blockshock import BlockShockLinear
from blockshock.collectives import Alone
from blockshock.errors import InputError
from blockshock.kernels import Half, Packed, build_kernel, cusparselt
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.cusparselt import bucket_of
from blockshock.kernels.cusparselt_search import Request, Searcher, identity
from blockshock.kernels.transpose import TileOrder
from blockshock.masks import DenseMask, Mask
from blockshock.patterns import build_mask
from blockshock.weights import TensorWeights

__all__ = ["fake_cusparselt"]

KERNELS = ("cusparselt:search=no", "cutlass", "gathered", "reference", "dense", "auto:search=no")
MASKS = ("1100", "0110", "1001", "random", "magnitude", "tile", "tile_random", "tile_magnitude", "given")
SIZES = ((16, 16), (48, 32), (20, 12), (36, 44), (64, 128), (144, 272), (256, 512))
OF_AUTO = ((48, 32), (256, 512))
"""Few, for each is measured."""
lengths = st.sampled_from((0, 1, 7, 8, 16, 32, 64)) | st.integers(0, 70)
"""Of a batch: as often such that the library takes x as it is, as others."""


def _mask(kind: str, source: TensorWeights) -> Mask:
    if kind == "given":
        return DenseMask(mask_rows(source.N, source.K, 3).to(source.device))
    return build_mask(kind, source)


def _half(mask: str, dtype: torch.dtype, N: int, K: int, device: str) -> Half:
    """Small weights, a tenth of them zeros, and zeros of both signs."""
    w_NK = matrix(N, K, dtype, N + K, device=device)
    w_NK[::2] *= -1
    source = TensorWeights(w_NK, matrix(1, N, dtype, 1, device=device)[0])
    return Half(source, slice(0, K), _mask(mask, source))


@cache
def rows(kernel: str, device: str) -> list[tuple[str, torch.dtype, int, int]]:
    """Mask, dtype, N and K of all that a kernel takes on a device."""
    built, found = build_kernel(kernel), []
    for mask, (N, K) in itertools.product(MASKS, OF_AUTO if kernel.startswith("auto") else SIZES):
        made = _half(mask, torch.float32, N, K, "cpu").mask
        for dtype in FLOATS:
            if not built.unavailable(torch.device(device), dtype) and not built.unsuitable(N, K, dtype, made):
                found.append((mask, dtype, N, K))
    return found


@cache
def packing(
    kernel: str, device: str, mask: str, dtype: torch.dtype, N: int, K: int, with_bias: bool
) -> tuple[Packed, torch.Tensor, torch.Tensor]:
    """Packed once for many x: the packing, and its weights and bias in float64."""
    half = _half(mask, dtype, N, K, device)
    chosen = build_kernel(kernel).resolve(half, 16, True, lambda seconds: seconds)
    chosen.check(half)
    assert half.source.bias is not None
    bias = half.source.bias * with_bias
    packed = chosen.pack(half, bias if with_bias else None, backward=True)
    return packed, half.dense().double(), bias.double()


def _is_right(found_BN: torch.Tensor, x_BK: torch.Tensor, w_KN: torch.Tensor, bias: torch.Tensor | float) -> bool:
    """Of a sum in float32, or float64, that is rounded once or twice; the operands are small and exact."""
    x64, eps = x_BK.double(), torch.finfo(x_BK.dtype).eps
    exact_BN, added_BN = x64 @ w_KN + bias, x64.abs() @ w_KN.abs() + abs(bias)
    bound_BN = eps * (2 * exact_BN.abs() + added_BN / 4) + 1e-30  # for what is flushed to zero
    return found_BN.shape == exact_BN.shape and bool(((found_BN.double() - exact_BN).abs() <= bound_BN).all())


def _check_a_product(data: Any, kernels: list[str], device: str) -> None:
    kernel = data.draw(st.sampled_from(kernels))
    mask, dtype, N, K = data.draw(st.sampled_from(rows(kernel, device)))
    packed, w_NK, bias = packing(kernel, device, mask, dtype, N, K, data.draw(st.booleans()))
    B, seed = data.draw(lengths), data.draw(st.integers(0, 2**32))
    layouts = data.draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
    x_BK, grad_y_BN = (
        matrix(max(B, 1), width, dtype, seed, layout, device)[:B] for width, layout in zip((K, N), layouts, strict=True)
    )
    assert _is_right(packed(x_BK), x_BK, w_NK.T, bias), "forward"
    assert _is_right(packed.grad_input(grad_y_BN), grad_y_BN, w_NK, 0.0), "backward"


@examples(150)
@given(data=st.data())
def test_products_are_right_on_a_cpu(fake_cusparselt: Any, data: Any) -> None:
    _check_a_product(data, [kernel for kernel in KERNELS if kernel != "cutlass"], "cpu")


@pytest.mark.gpu
@needs_a_gpu
@examples(2000)
@given(data=st.data())
def test_products_are_right_on_a_gpu(data: Any) -> None:
    _check_a_product(data, [kernel for kernel in KERNELS if rows(kernel, "cuda")], "cuda")


LAYERS = [
    *(("cusparselt:search=no", mask) for mask in ("tile", "random", "tile_random")),
    *(("gathered", mask) for mask in ("1100", "tile")),
    *(("reference", mask) for mask in ("random", "tile_random")),
]
PRODUCTS = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16, torch.float16, torch.float32),
    torch.float64: (torch.float64, torch.float32, torch.bfloat16),
}
"""Dtypes of parameters, and of products under them."""


def _check_a_layer(data: Any, device: str) -> None:
    parameters = data.draw(st.sampled_from(list(PRODUCTS)))
    dtype = data.draw(st.sampled_from(PRODUCTS[parameters]))
    halves = dtype in (torch.bfloat16, torch.float16)
    kernel, mask = data.draw(st.sampled_from(LAYERS if halves else LAYERS[3:]))
    N, K = data.draw(st.sampled_from(((16, 16), (48, 64), (144, 272))))
    linear = nn.Linear(K, N, device=device, dtype=parameters)
    with torch.no_grad():
        linear.weight.copy_(matrix(N, K, parameters, 1, device=device))
        linear.weight[::2] *= -1
        linear.bias.copy_(matrix(1, N, parameters, 2, device=device)[0])
    storage = data.draw(st.sampled_from(("compressed", "masked")))
    layer = BlockShockLinear(linear, Alone(), mask=mask, kernel=kernel, storage=storage, dtype=dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2**-6)
    B, eps = data.draw(lengths), torch.finfo(dtype).eps
    for seed in range(2):
        x_layout, grad_layout = data.draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
        x = matrix(max(B, 1), K, dtype, seed, x_layout, device)[:B].requires_grad_()
        grad_y = matrix(max(B, 1), N, dtype, seed + 2, grad_layout, device)[:B]
        before = layer.to_linear().weight.detach()
        w64, b64, x64 = before.to(dtype).double(), layer.bias.detach().to(dtype).double(), x.detach().double()
        y = layer(x)
        bound = eps * (x64.abs() @ w64.T.abs() + b64.abs())
        assert bool(((y.detach().double() - x64 @ w64.T - b64).abs() <= bound).all()), f"forward, step {seed}"
        y.backward(grad_y)
        assert x.grad is not None
        bound = eps * (grad_y.double().abs() @ w64.abs())
        assert bool(((x.grad.double() - grad_y.double() @ w64).abs() <= bound).all()), f"grad_x, step {seed}"
        optimizer.step()
        optimizer.zero_grad()
        grad64 = grad_y.double().T @ x64
        wanted = before.double() - 2**-6 * grad64
        bound = 2 * torch.finfo(parameters).eps * (before.double().abs() + grad64.abs() + 1)
        after = layer.to_linear().weight.detach().double()
        assert bool(((after - wanted).abs() <= bound).all()), f"weights, step {seed}"


@examples(60)
@given(data=st.data())
def test_layers_train_right_on_a_cpu(fake_cusparselt: Any, data: Any) -> None:
    _check_a_layer(data, "cpu")


@pytest.mark.gpu
@needs_a_gpu
@examples(300)
@given(data=st.data())
def test_layers_train_right_on_a_gpu(data: Any) -> None:
    _check_a_layer(data, "cuda")


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("kernel", ["auto", "cusparselt:search=no", "gathered", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_column_slice_goes_into_a_layer_on_one_gpu(kernel: str, dtype: torch.dtype) -> None:
    if kernel.startswith("cusparselt") and dtype != torch.bfloat16:
        pytest.skip("cuSPARSELt multiplies 16-bit numbers")
    linear = nn.Linear(512, 1024, device="cuda", dtype=dtype)
    layer, x = BlockShockLinear(linear, kernel=kernel), torch.randn(64, 2048, device="cuda", dtype=dtype)
    for part in (x[:, :512], x[:, 512:1024], x[:, 1:513], x[::3, ::4], x[0:1, :512].expand(64, 512), x[:7, :512]):
        exact = part.double() @ linear.weight.double().T + linear.bias.double()
        assert (layer(part).double() - exact).norm() <= 16 * torch.finfo(dtype).eps * exact.norm()
    assert layer(x[:0, :512]).shape == (0, 1024)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", ["tile", "tile_random"])
def test_kept_values_of_every_layout_turn_on_a_gpu(mask: str, layout: str) -> None:
    N, K = 48, 80
    half, on_cpu = (_half(mask, torch.float32, N, K, device) for device in ("cuda", "cpu"))
    on_cpu = Half(on_cpu.source, on_cpu.columns, DenseMask(half.mask.dense().cpu()))
    orders = TileOrder(half.mask, torch.device("cuda")), TileOrder(on_cpu.mask, torch.device("cpu"))
    for dtype, target in itertools.product(FLOATS, (torch.bfloat16, torch.float16, torch.float32)):
        values_NJ = matrix(N, K // 2, dtype, 5, layout, "cuda")
        wanted_KM = torch.empty(K, N // 2, dtype=target)
        orders[1].transpose(values_NJ.cpu(), wanted_KM)
        buffer = torch.zeros(K, N, dtype=target, device="cuda")
        for out_KM in (torch.empty(K, N // 2, dtype=target, device="cuda"), buffer[:, : N // 2], buffer[:, N // 2 :]):
            rows_NJ = torch.empty(N, K // 2, dtype=target, device="cuda")
            orders[0].transpose(values_NJ, out_KM, rows_NJ)
            assert torch.equal(out_KM.cpu(), wanted_KM)
            assert torch.equal(rows_NJ, values_NJ.to(target))


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
    assert (0, 1, -1) not in found.turned_away


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
    monkeypatch.setattr(cusparselt, "_algorithms", AlgorithmCache("octaves", fits=lambda stored: True))
    half = _half(mask, torch.bfloat16, 1024, 512, "cuda")
    packed = build_kernel("cusparselt").pack(half, half.source.bias, backward=True)
    w_NK, bias = half.dense().double(), half.source.bias
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
from blockshock.collectives import Alone
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
trains(*layer_on("cuda:0", "auto"), "cuda:0")
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
