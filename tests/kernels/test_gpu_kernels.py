"""Kernels and layers fuzzed on the device that they are for, beside float64: every layout, mask, dtype and length."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from fuzzing import examples
from gpus import needs_a_gpu
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, mask_rows, matrix
from torch import nn

from blockshock import BlockShockLinear
from blockshock.kernels import Kernel, Packed, build_kernel
from blockshock.kernels.transpose import TileOrder
from blockshock.machine.collectives import Alone
from blockshock.matrices.masks import DenseMask, Mask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights

__all__ = ["fake_cusparselt"]

KERNELS = ("cusparselt:search=no", "cutlass", "gathered", "reference", "dense", "streamed", "auto:search=no")
MASKS = ("1100", "0110", "1001", "random", "magnitude", "tile", "tile_random", "tile_magnitude", "given")
SIZES = ((16, 16), (48, 32), (20, 12), (36, 44), (144, 272), (256, 512))
OF_AUTO = tuple(itertools.product(("1100", "random", "tile_random"), ((48, 32), (256, 512))))
"""Masks and sizes: few, for each is measured, and its kernels are fuzzed by themselves."""
lengths = st.sampled_from((0, 1, 7, 8, 16, 32, 64)) | st.integers(0, 24)
"""Of a batch: as often such that the library takes x as it is, as others. Few once they are padded to eights: the first
product of a size takes cuSPARSELt 0.17 s."""
INPUTS = 6
"""That each packing of the fuzz meets."""


def _mask(kind: str, source: TensorWeights) -> Mask:
    if kind == "given":
        return DenseMask(mask_rows(source.N, source.K, 3).to(source.device))
    return build_mask(kind, source)


def _half(mask: str, dtype: torch.dtype, N: int, K: int, device: str) -> Piece:
    """Small weights, a tenth of them zeros, and zeros of both signs."""
    w_NK = matrix(N, K, dtype, N + K, device=device)
    w_NK[::2] *= -1
    source = TensorWeights(w_NK, matrix(1, N, dtype, 1, device=device)[0])
    return Piece(source, slice(0, K), _mask(mask, source))


@cache
def rows(kernel: str, device: str) -> list[tuple[str, torch.dtype, int, int]]:
    """Mask, dtype, N and K of all that a kernel takes on a device."""
    built, found = build_kernel(kernel), []
    for mask, (N, K) in OF_AUTO if kernel.startswith("auto") else itertools.product(MASKS, SIZES):
        made = _half(mask, torch.float32, N, K, "cpu").mask
        for dtype in FLOATS:
            if not built.unavailable(torch.device(device), dtype) and not built.unsuitable(N, K, dtype, made):
                found.append((mask, dtype, N, K))
    return found


@cache
def chosen_for(kernel: str, device: str, mask: str, dtype: torch.dtype, N: int, K: int) -> tuple[Kernel, Piece]:
    """The kernel that multiplies by a half; where that is `auto`'s choice, it is measured once."""
    half = _half(mask, dtype, N, K, device)
    chosen = build_kernel(kernel).resolve(half, 16, True, lambda seconds: seconds)
    chosen.check(half)
    return chosen, half


@cache
def packing(
    kernel: str, device: str, mask: str, dtype: torch.dtype, N: int, K: int, with_bias: bool
) -> tuple[Packed, torch.Tensor, torch.Tensor]:
    """Packed once for many x: the packing, and its weights and bias in float64."""
    chosen, half = chosen_for(kernel, device, mask, dtype, N, K)
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
    for _ in range(INPUTS):
        B, seed = data.draw(lengths), data.draw(st.integers(0, 2**32))
        layouts = data.draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
        x_BK, grad_y_BN = (
            matrix(max(B, 1), width, dtype, seed, layout, device)[:B]
            for width, layout in zip((K, N), layouts, strict=True)
        )
        assert _is_right(packed(x_BK), x_BK, w_NK.T, bias), "forward"
        assert _is_right(packed.grad_input(grad_y_BN), grad_y_BN, w_NK, 0.0), "backward"


@examples(50)
@given(data=st.data())
def test_products_are_right_on_a_cpu(fake_cusparselt: Any, data: Any) -> None:
    _check_a_product(data, [kernel for kernel in KERNELS if rows(kernel, "cpu")], "cpu")


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("kernel", KERNELS)
@examples(60)
@given(data=st.data())
def test_products_are_right_on_a_gpu(kernel: str, data: Any) -> None:
    if not rows(kernel, "cuda"):
        pytest.skip(f"{kernel} multiplies none of these rows on this GPU")
    _check_a_product(data, [kernel], "cuda")


LAYERS = [
    *(("cusparselt:search=no", mask) for mask in ("tile", "random", "tile_random")),
    *(("streamed", mask) for mask in ("tile", "random")),
    *(("gathered", mask) for mask in ("1100", "tile")),
    *(("reference", mask) for mask in ("random", "tile_random")),
]
LAYER_SIZES = ((16, 16), (48, 64), (144, 272))
PRODUCTS = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16, torch.float16, torch.float32),
    torch.float64: (torch.float64, torch.float32, torch.bfloat16),
}
"""Dtypes of parameters, and of products under them."""


def _check_a_layer(data: Any, device: str) -> None:
    parameters = data.draw(st.sampled_from(list(PRODUCTS)))
    dtype = data.draw(st.sampled_from(PRODUCTS[parameters]))
    here = torch.device(device)
    kernel, mask = data.draw(
        st.sampled_from([row for row in LAYERS if not build_kernel(row[0]).unavailable(here, dtype)])
    )
    sizes = [size for size in LAYER_SIZES if not build_kernel(kernel).unsuitable(*size, dtype)]
    N, K = data.draw(st.sampled_from(sizes))
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
@examples(120)
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
    on_cpu = Piece(on_cpu.source, on_cpu.columns, DenseMask(half.mask.dense().cpu()))
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
