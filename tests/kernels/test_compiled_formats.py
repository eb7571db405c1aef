"""What compilers make of formats: what they are handed, and on a CPU what Inductor makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from strategies import LAYOUTS, matrix
from torch._dynamo.backends.common import aot_autograd

from blockshock.kernels import PackedDenseQuantised, build_format, build_kernel
from blockshock.kernels.formats import Order, PackedQuantised
from blockshock.kernels.layout import dense_rows
from blockshock.matrices import GeneratedWeights, Piece, build_mask

__all__ = ["fake_cusparselt"]
CPU = torch.device("cpu")
FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)
KEEP_BITS = ("view", "alias", "slice", "permute", "t", "detach", "clone", "convert_element_type", "_to_copy")
"""Of what torch does to floating-point numbers of eight bits, what Inductor compiles for every device."""


def _packed(kind: str, name: str, N: int = 64, K: int = 96) -> PackedQuantised:
    source, format = GeneratedWeights(N, K, torch.bfloat16, CPU, with_bias=True), build_format(name)
    assert format is not None
    if kind == "dense":
        return PackedDenseQuantised(source, source.bias, format)
    packed: Any = build_kernel(kind).pack_quantised(
        Piece(source, mask=build_mask("random", source)), source.bias, format
    )
    return packed


def _handed(call: Callable[..., Any], *inputs: torch.Tensor) -> list[torch.fx.Node]:
    """The graph that is handed to what compiles it."""
    graphs: list[torch.fx.GraphModule] = []

    def compiles(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(call, backend=aot_autograd(fw_compiler=compiles), fullgraph=True)(*inputs)
    (graph,) = graphs
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def _is_float8(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and getattr(node.meta.get("val"), "dtype", None) in FLOATS


@pytest.mark.parametrize(("N", "K"), [(64, 96), (20, 92)])
@pytest.mark.parametrize("name", ["fp8", "fp8_e5m2"])
def test_no_floats_of_eight_bits_are_filled_up(name: str, N: int, K: int) -> None:
    """Inductor makes constants of that, which Triton refuses; and on a CPU it promotes no such dtype."""
    for node in _handed(_packed("dense", name, N, K), torch.randn(20, K).bfloat16()):
        if _is_float8(node):
            assert str(node.target).split(".")[1] in KEEP_BITS, node


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("fused", ["", ":fused=no"])
def test_cusparselt_is_one_operator(fake_cusparselt: Any, fused: str, name: str) -> None:
    """Which torch's own is not, where it gives sums of products of fp8 in float32."""
    packed, x_BK = _packed(f"cusparselt:search=no{fused}", name), torch.randn(20, 96).bfloat16()
    multiplying = [str(node.target) for node in _handed(packed, x_BK) if "cusparselt" in str(node.target)]
    assert multiplying == ["blockshock.cusparselt_bytes.default"]
    assert torch.equal(torch.compile(packed, backend="aot_eager", fullgraph=True)(x_BK), packed(x_BK))


@pytest.mark.parametrize("R", [0, 5, 300])
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("order", [Order.CROSSED, Order.TILES])
def test_what_lies_in_no_rows_is_quantised_by_one_operator(order: Order, name: str, R: int) -> None:
    format, x_RK = build_format(name), torch.randn(R, 264).bfloat16()
    assert format is not None

    def call(x_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, scale_R1 = format.quantise_in(x_RK, order)
        return numbers.view(torch.uint8), scale_R1

    wanted = call(x_RK)
    if R:
        names = [str(node.target) for node in _handed(call, x_RK)]
        assert names.count("blockshock.quantised.default") == 1
        assert not any("index" in name for name in names)
    torch._dynamo.reset()
    with torch.inference_mode():
        for dynamic in (False, True):
            found = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)(x_RK)
            assert all(map(torch.equal, found, wanted))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize(("N", "K", "B"), [(64, 96, 20), (20, 92, 7)])
def test_inductor_compiles_dense_fp8_on_a_cpu(N: int, K: int, B: int) -> None:
    packed, x_BK = _packed("dense", "fp8", N, K), torch.randn(B, K).bfloat16()
    torch._dynamo.reset()
    with torch.inference_mode():
        y_BN = torch.compile(packed, fullgraph=True, dynamic=False)(x_BK)
        torch.testing.assert_close(y_BN, packed(x_BK), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [0, 5, 16])
def test_rows_of_eight_bits_keep_their_bits(rows: int, dtype: torch.dtype, layout: str) -> None:
    q_BK = matrix(max(rows, 1), 32, dtype, 0, layout)[:rows]
    dense_BK = dense_rows(q_BK, multiple=16)
    assert dense_BK.dtype == dtype
    assert dense_BK.is_contiguous()
    assert torch.equal(dense_BK[:rows].view(torch.uint8), q_BK.contiguous().view(torch.uint8))
    assert not dense_BK[rows:].view(torch.uint8).any()
