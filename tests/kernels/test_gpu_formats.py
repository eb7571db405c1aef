"""Formats on the device that they are for, beside float64 of what is stored: odd sizes, every layout, a CUDA graph."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpus import format_of_this_gpu, needs_a_gpu
from strategies import LAYOUTS, matrix

from blockshock.kernels import Format, Kernel, PackedDenseQuantised, QuantisedWeights, build_format, build_kernel
from blockshock.kernels.formats import PackedQuantised
from blockshock.machine import torch_internals
from blockshock.matrices import GeneratedWeights, Piece, TensorWeights, WeightSource, build_mask
from blockshock.measure import Accuracy, compare

pytestmark = [pytest.mark.gpu, needs_a_gpu]
FORMATS = ("int8", "fp8")
DENSE = (*FORMATS, "fp8_e5m2")
OWN = ("streamed", "wgmma")
KINDS = [*((name, kind) for kind in ("dense", "2:4", *OWN) for name in FORMATS), ("fp8_e5m2", "dense")]
SIZES = ((512, 1024), (4096, 4096), (1024, 16384))
TOKENS = (1, 7, 16, 17, 64, 1000)
INT8_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _sparse(spec: str = "cusparselt:search=no") -> Kernel:
    kernel = build_kernel(spec)
    if reason := kernel.unavailable(torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    return kernel


def _x(B: int, K: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Tokens of very different sizes: a scale that is not a token's own shows."""
    x_BK = torch.randn(B, K, generator=torch.Generator().manual_seed(B))
    return (x_BK * torch.logspace(-2, 2, B)[:, None]).to("cuda", dtype)


def _failure(packed: Any, x_BK: torch.Tensor, weights: WeightSource) -> str | None:
    """What a product misses that phase 0 asks for."""
    format: Format = packed.format
    own = QuantisedWeights(weights, format)
    with torch.inference_mode():
        y_BN = packed(x_BK)
        sums = compare(y_BN, format.represented(x_BK), own, packed.roundings, 0, 1, packed.sums)
    return Accuracy.of(sums, packed.roundings).failure()


@pytest.mark.parametrize("B", TOKENS)
@pytest.mark.parametrize(("N", "K"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_dense_is_right_for_what_is_stored(name: str, bias: bool, N: int, K: int, B: int) -> None:
    source = GeneratedWeights(N, K, torch.bfloat16, "cuda", with_bias=bias)
    packed = PackedDenseQuantised(source, source.bias, format_of_this_gpu(name))
    assert _failure(packed, _x(B, K), source) is None


@pytest.mark.parametrize("dtype", INT8_DTYPES)
def test_int8_is_right_in_every_dtype(dtype: torch.dtype) -> None:
    source = GeneratedWeights(512, 768, dtype, "cuda", with_bias=True)
    assert (
        _failure(PackedDenseQuantised(source, source.bias, format_of_this_gpu("int8")), _x(33, 768, dtype), source)
        is None
    )


def test_int8_2to4_is_right_in_float16() -> None:
    source = GeneratedWeights(512, 768, torch.float16, "cuda", with_bias=True)
    half = Piece(source, mask=build_mask("random", source))
    for spec in ("cusparselt:search=no:fused=no", *OWN):
        packed = _sparse(spec).pack_quantised(half, source.bias, format_of_this_gpu("int8"))
        assert _failure(packed, _x(33, 768, torch.float16), _Kept(half)) is None


@pytest.mark.parametrize(("N", "K", "B"), [(20, 12, 3), (36, 44, 16), (100, 500, 31)])
@pytest.mark.parametrize("name", DENSE)
def test_sizes_that_the_product_does_not_take_are_filled_up(name: str, N: int, K: int, B: int) -> None:
    source = GeneratedWeights(N, K, torch.bfloat16, "cuda", with_bias=True)
    packed = PackedDenseQuantised(source, source.bias, format_of_this_gpu(name))
    assert _failure(packed, _x(B, K), source) is None
    assert packed(_x(B, K)[:0]).shape == (0, N)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_x_may_lie_in_any_way(name: str, kind: str, layout: str) -> None:
    packed, _ = _packed(name, kind, 64, 96)
    x_BK = matrix(9, 96, torch.bfloat16, 2, layout, "cuda")
    assert torch.equal(packed(x_BK), packed(x_BK.clone(memory_format=torch.contiguous_format)))


def _packed(
    name: str, kind: str, N: int, K: int, spec: str = "cusparselt:search=no"
) -> tuple[PackedQuantised, WeightSource]:
    """With weights whose channels are of very different sizes; and what they are right for, before it is quantised."""
    format = format_of_this_gpu(name)
    w_NK = GeneratedWeights(N, K, torch.float32, "cuda").rows(0, N) * torch.logspace(-2, 2, N, device="cuda")[:, None]
    w_NK[3] = w_NK[3].sign() * 0.3
    source = TensorWeights(w_NK.bfloat16(), torch.randn(N, device="cuda").bfloat16())
    if kind == "dense":
        return PackedDenseQuantised(source, source.bias, format), source
    half = Piece(source, mask=build_mask("random", source))
    packed: Any = _sparse(kind if kind in OWN else spec).pack_quantised(half, source.bias, format)
    own = _Kept(half)
    return packed, own


class _Kept(WeightSource):
    """What a piece keeps, its zeros as they are."""

    def __init__(self, half: Piece) -> None:
        super().__init__(half.N, half.K, half.dtype, half.device, 0, half.source.bias)
        self._half = half

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._half.kept_block(start, stop)


@pytest.mark.parametrize("B", TOKENS)
@pytest.mark.parametrize(("N", "K"), SIZES)
@pytest.mark.parametrize("spec", ["cusparselt:search=no", "cusparselt:search=no:fused=no", *OWN])
@pytest.mark.parametrize("name", FORMATS)
def test_sparse_is_right_for_what_is_stored(name: str, spec: str, N: int, K: int, B: int) -> None:
    packed, own = _packed(name, "2:4", N, K, spec)
    assert _failure(packed, _x(B, K), own) is None


@pytest.mark.parametrize("spec", ["cusparselt", "cusparselt:fused=no"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_searched_is_right(name: str, spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packed, own = _packed(name, "2:4", 1024, 2048, spec)
    for B in (16, 200):
        assert _failure(packed, _x(B, 2048), own) is None
    assert packed.algorithm


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_rows_of_zeros_and_of_what_is_not_finite(name: str, kind: str) -> None:
    packed, own = _packed(name, kind, 64, 96)
    x_BK = _x(32, 96)
    x_BK[1], x_BK[2, 3], x_BK[5, 7] = 0, math.nan, math.inf
    y_BN, whole = packed(x_BK), torch.isfinite(x_BK).all(1)
    assert torch.equal(torch.isfinite(y_BN).all(1), whole)
    assert own.bias is not None
    assert torch.equal(y_BN[1], own.bias)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_cuda_graph_gives_the_same_bits(name: str, kind: str) -> None:
    packed, _ = _packed(name, kind, 512, 1024)
    x_BK, other_BK = _x(64, 1024), _x(64, 1024).flip(0)
    with torch.inference_mode():
        first, second = packed(x_BK).clone(), packed(other_BK).clone()
        torch.cuda.synchronize()
        graph, held = torch.cuda.CUDAGraph(), x_BK.clone()
        with torch.cuda.graph(graph):
            y_BN = packed(held)
        for x, wanted in ((x_BK, first), (other_BK, second)):
            held.copy_(x)
            graph.replay()
            assert torch.equal(y_BN, wanted)


@pytest.mark.parametrize("name", DENSE)
def test_what_is_stored_is_what_a_cpu_stores(name: str) -> None:
    x_BK, numbers = _x(50, 333), format_of_this_gpu(name).weights
    there, here = numbers.quantise(x_BK), numbers.quantise(x_BK.cpu())
    assert torch.equal(there[0].cpu().float(), here[0].float())
    assert torch.equal(there[1].cpu(), here[1])


@pytest.mark.parametrize(("name", "kind"), [case for case in KINDS if case[1] != "dense" or case[0] == "fp8_e5m2"])
def test_a_scale_of_the_wrong_channel_is_caught(name: str, kind: str) -> None:
    packed, own = _packed(name, kind, 512, 1024)
    packed.scale_N.copy_(packed.scale_N.roll(1))
    assert _failure(packed, _x(64, 1024), own) is not None


def test_an_algorithm_may_be_searched_in_eight_bits() -> None:
    packed, _ = _packed("int8", "2:4", 512, 1024)
    q_BK, _ = format_of_this_gpu("int8").quantise(_x(64, 1024))
    found = torch_internals.search(packed.packed, q_BK.T, None, packed.scale_N, torch.bfloat16)  # type: ignore[arg-type]
    assert len(found) == 3


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_compiled_it_is_right_and_captured(name: str, kind: str) -> None:
    packed, own = _packed(f"{name}:compiled=yes", kind, 512, 1024)
    for B in (16, 64, 200):
        x_BK = _x(B, 1024)
        assert _failure(packed, x_BK, own) is None
        with torch.inference_mode():
            wanted, graph = packed(x_BK).clone(), torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                y_BN = packed(x_BK)
            graph.replay()
        assert torch.equal(y_BN, wanted)


@pytest.mark.parametrize("B", [19, 256])
@pytest.mark.parametrize(("name", "kind"), [*KINDS, ("int8", "sums"), ("fp8", "sums")])
def test_inductor_compiles_it_among_others(name: str, kind: str, B: int) -> None:
    """Rounding to bf16 in between, which it leaves out, moves some numbers to the next that is stored."""
    packed, _ = _packed(name, kind, 512, 1024, f"cusparselt:search=no{':fused=no' if kind == 'sums' else ''}")

    def network(x_BK: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(packed(torch.nn.functional.layer_norm(x_BK, (1024,))))

    torch._dynamo.reset()
    with torch.inference_mode():
        wanted, found = network(_x(B, 1024)), torch.compile(network, fullgraph=True, dynamic=False)(_x(B, 1024))
    assert (found.double() - wanted.double()).norm() <= 0.05 * wanted.double().norm()


@pytest.mark.parametrize("name", DENSE)
def test_the_bare_products_are_there_to_be_timed(name: str) -> None:
    format = format_of_this_gpu(name)
    x_BK, w_NK = format.quantise(_x(64, 512)).numbers, format.weights.quantise(_x(128, 512)).numbers
    exact_BN = x_BK.double() @ w_NK.double().T
    assert (format.product(x_BK, w_NK).double() - exact_BN).norm() <= 0.01 * exact_BN.norm()
    if name not in FORMATS:
        return
    for kind in ("2:4", *OWN):
        packed: Any = _packed(name, kind, 128, 512)[0]
        assert packed.product(x_BK).shape == (64, 128)


def test_weights_in_e5m2_multiply_just_where_they_are_said_to() -> None:
    """On a GPU whose library takes none, torch says so where the format does."""
    format = build_format("fp8_e5m2")
    assert format is not None
    x_BK, w_NK = format.quantise(_x(32, 64)).numbers, format.weights.quantise(_x(48, 64)).numbers
    if format.unavailable(torch.device("cuda"), torch.bfloat16) is None:
        assert torch.isfinite(format.product(x_BK, w_NK)).all()
        with pytest.raises((RuntimeError, ValueError), match="two Float8_e5m2"):
            format.product(x_BK.to(torch.float8_e5m2), w_NK)
        return
    with pytest.raises((RuntimeError, ValueError)):
        format.product(x_BK, w_NK)
