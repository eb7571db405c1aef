"""Formats: what is stored is what their definition says, products are those of it, and what cannot be is said."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from strategies import LAYOUTS, matrix

from blockshock.errors import InputError, UnknownName
from blockshock.kernels import (
    FORMATS,
    KERNELS,
    E5m2,
    Format,
    PackedDenseQuantised,
    QuantisedWeights,
    auto,
    build_format,
    build_kernel,
    cusparselt,
    formats,
)
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.kernels.cusparselt_trial import Trial
from blockshock.matrices import GeneratedWeights, Piece, TensorWeights, build_mask
from blockshock.measure import Ceilings, NoCeiling
from blockshock.stages import recording

__all__ = ["fake_cusparselt"]
CPU = torch.device("cpu")
EIGHT_BITS = ("int8", "fp8", "fp8_e5m2")
SPARSE_CORES = ("int8", "fp8")
"""What cuSPARSELt multiplies."""
NUMBERS = (*SPARSE_CORES, "e5m2")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TINY = 2.0**-126


def single(value: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


def grid(format: str) -> list[float]:
    """The numbers from 0 on that a format has, in order; those of even index are the even ones."""
    if format == "int8":
        return [float(number) for number in range(128)]
    last, dtype = (124, torch.float8_e5m2) if format == "e5m2" else (127, torch.float8_e4m3fn)
    return torch.arange(last, dtype=torch.uint8).view(dtype).double().tolist()


def nearest(value: float, numbers: list[float]) -> float:
    """Of the numbers the one that is nearest, of two the even one."""
    size = abs(value)
    best = min(range(len(numbers)), key=lambda index: (abs(numbers[index] - size), index % 2))
    return math.copysign(numbers[best], value)


def by_the_book(rows: list[list[float]], format: str) -> list[list[float]]:
    """What a format has of a matrix, number by number."""
    numbers = grid(format)
    found = []
    for row in rows:
        scale = max(single(max(map(abs, row)) * single(1 / numbers[-1])), TINY)
        found.append([nearest(single(value / scale), numbers) * scale for value in row])
    return found


def of(name: str) -> Format:
    found = E5m2() if name == "e5m2" else build_format(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_stored_is_the_nearest_number_of_the_format(name: str) -> None:
    x_BK = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    x_BK[1] *= 1e-30
    x_BK[2, 3] = 1e4  # an outlier
    x_BK[3] = 0.3  # all alike
    x_BK[4] = 0
    x_BK[5] = torch.arange(40) - 20.0  # ties, once scaled by a power of two
    x_BK[5, 0] = grid(name)[-1] / 8
    wanted = torch.tensor(by_the_book(x_BK.tolist(), name), dtype=torch.float64)
    q_BK, scale_B1 = of(name).quantise(x_BK)
    assert (q_BK.dtype, scale_B1.dtype, scale_B1.shape) == (of(name).stored, torch.float32, (6, 1))
    assert torch.equal(q_BK.double() * scale_B1.double(), wanted)
    assert torch.equal(of(name).represented(x_BK), wanted)
    assert q_BK[4].double().abs().max() == 0


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_a_row_with_what_is_not_finite_gives_what_is_not_and_no_other_row_does(name: str) -> None:
    source = GeneratedWeights(16, 32, torch.float32, CPU)
    x_BK = torch.ones(4, 32)
    x_BK[1, 3], x_BK[2, 5] = math.nan, math.inf
    y_BN = PackedDenseQuantised(source, None, of(name))(x_BK)
    assert torch.isfinite(y_BN).all(1).tolist() == [True, False, False, True]
    assert not torch.isfinite(y_BN[1:3]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NUMBERS)
def test_the_largest_and_the_smallest_numbers_of_a_dtype_are_neither_lost_nor_cut(
    name: str, dtype: torch.dtype
) -> None:
    limits = torch.finfo(dtype)
    x_BK = torch.tensor([[limits.max, -limits.max / 2, 0, 0], [limits.tiny, -limits.tiny, 0, 0], [limits.max] * 4])
    exact = of(name).represented(x_BK.to(dtype))
    for row, at_most in ((0, 2.0**-20), (1, 2.0**-4), (2, 2.0**-20)):
        assert (exact[row, 0] / x_BK[row, 0].double() - 1).abs() <= at_most
    q_BK, scale_B1 = of(name).quantise(x_BK.to(dtype))
    assert torch.equal(q_BK.double() * scale_B1.double(), exact)


def _close(y_BN: torch.Tensor, exact_BN: torch.Tensor, roundings: int = 1) -> None:
    assert (y_BN.double() - exact_BN).norm() <= roundings * torch.finfo(y_BN.dtype).eps * exact_BN.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize(("N", "K", "B"), [(64, 96, 5), (37, 53, 1), (1, 1, 1), (48, 30, 17), (16, 16, 40)])
def test_the_dense_product_is_that_of_what_is_stored(name: str, dtype: torch.dtype, N: int, K: int, B: int) -> None:
    stream = torch.Generator().manual_seed(N)
    w_NK, b_N, x_BK = (torch.randn(*size, generator=stream).to(dtype) for size in ((N, K), (N,), (B, K)))
    w_NK[0] = 0
    source = _Rows(w_NK, b_N)
    exact_BN = of(name).represented(x_BK) @ of(name).weights.represented(w_NK).T
    packed = PackedDenseQuantised(source, None, of(name))
    _close(packed(x_BK), exact_BN)
    _close(PackedDenseQuantised(source, b_N, of(name))(x_BK), exact_BN + b_N.double())
    assert packed(x_BK).dtype is dtype
    assert packed(x_BK[:0]).shape == (0, N)
    assert packed.shape == (N, K)
    held = sum(buffer.nbytes for buffer in packed.buffers())
    assert held == PackedDenseQuantised.held_bytes(N, K, of(name)) == packed.operand.size
    assert (packed.operand.values, packed.operand.unit) == (N * K, name)


class _Rows(TensorWeights):
    """Any matrix, of sizes that no 2:4 mask has, and zeros as they are."""

    def __init__(self, w_NK: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.N, self.K, self.dtype, self.device, self.seed, self.bias = *w_NK.shape, w_NK.dtype, CPU, 0, bias
        self._w_NK = w_NK

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        return self._w_NK[start:stop]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_x_may_lie_in_any_way(name: str, layout: str) -> None:
    source = TensorWeights(matrix(32, 48, torch.bfloat16, 1))
    x_BK = matrix(5, 48, torch.bfloat16, 2, layout)
    before, wanted = x_BK.clone(), PackedDenseQuantised(source, None, of(name))(x_BK.contiguous())
    assert torch.equal(PackedDenseQuantised(source, None, of(name))(x_BK), wanted)
    half = Piece(source, mask=build_mask("random", source))
    kernel = build_kernel("reference")
    wanted = kernel.pack_quantised(half, None, of(name))(x_BK.contiguous())
    assert torch.equal(kernel.pack_quantised(half, None, of(name))(x_BK), wanted)
    assert torch.equal(x_BK, before)


def test_what_is_filled_up_counts_as_layout() -> None:
    for K, B, copied in ((32, 32, 0), (32, 5, 17 * 32), (30, 32, 32 * 32)):
        packed = PackedDenseQuantised(_Rows(torch.ones(16, K), None), None, of("int8"))
        with recording(lambda: None) as recorder:
            packed(torch.ones(B, K))
        assert recorder.copied_bytes == copied


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["1100", "random", "tile_random"])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_the_reference_multiplies_what_is_kept(name: str, mask: str, dtype: torch.dtype) -> None:
    source = GeneratedWeights(64, 96, dtype, CPU, with_bias=True)
    half = Piece(source, mask=build_mask(mask, source))
    kernel, x_BK = build_kernel("reference"), torch.randn(7, 96).to(dtype)
    exact_BN = of(name).represented(x_BK) @ of(name).weights.represented(half.dense()).T + _double(source.bias)
    packed = kernel.pack_quantised(half, source.bias, of(name))
    _close(packed(x_BK), exact_BN)
    bias = 64 * dtype.itemsize
    assert sum(buffer.nbytes for buffer in packed.buffers()) - bias == kernel.quantised_bytes(64, 96, of(name))[0]
    assert kernel.resolve_format(half, 7, of(name), list) is kernel
    assert build_kernel("auto").resolve_format(half, 7, of(name), list).name == "reference"


class _Planted(KERNELS.get("reference")):  # type: ignore[misc]
    """Made to be fast, for up to 16 tokens; and wrong where it is told to be."""

    contender, most_tokens, wrong = True, 16, False

    def pack_quantised(self, *given: Any) -> Any:
        packed = super().pack_quantised(*given)
        if self.wrong:
            packed.scale_N[3] *= 2
        return packed


def test_auto_measures_in_a_format_what_multiplies_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Ranks decide by the seconds of all of them, for each number of tokens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(KERNELS.get("reference"), "contender", True)
    monkeypatch.setattr(KERNELS, "_entries", {**KERNELS._entries, "planted": _Planted})
    monkeypatch.setattr(auto, "_median_seconds", lambda kernel, *_: {"planted": 1.0, "reference": 2.0}[kernel.name])
    source = GeneratedWeights(64, 96, torch.bfloat16, CPU)
    half, seen = Piece(source, mask=build_mask("random", source)), []

    def resolved(tokens: int, agree: Any = list) -> str:
        monkeypatch.setattr(auto, "_measured", AlgorithmCache(f"auto{len(seen)}", auto.are_seconds))
        seen.append(tokens)
        return str(build_kernel("auto").resolve_format(half, tokens, of("int8"), agree).name)

    assert resolved(16) == "planted"
    assert resolved(16, lambda found: [3 - second for second in found]) == "reference"
    assert resolved(17) == "reference", "for more tokens than it takes"
    monkeypatch.setattr(_Planted, "wrong", True)
    assert resolved(16) == "reference"


def _double(bias: torch.Tensor | None) -> torch.Tensor:
    assert bias is not None
    return bias.double()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layout", ["whole", "transposed", "odd columns", "expanded rows"])
@pytest.mark.parametrize("name", SPARSE_CORES)
def test_cusparselt_multiplies_what_is_kept(name: str, layout: str, fused: bool, fake_cusparselt: Any) -> None:
    w_NK = torch.randn(64, 96, generator=torch.Generator().manual_seed(3)).bfloat16()
    w_NK[3, :8], w_NK[4] = 1e-6, 0  # what rounds to zero, some of it to −0.0, and a channel of zeros
    w_NK[3, ::2] *= -1
    source = TensorWeights(w_NK, torch.randn(64).bfloat16())
    half = Piece(source, mask=build_mask("random", source))
    kernel = fake_cusparselt(search=False, fused=fused)
    x_BK = matrix(9, 96, torch.bfloat16, 5, layout)
    packed = kernel.pack_quantised(half, source.bias, of(name))
    exact_BN = of(name).represented(x_BK) @ of(name).weights.represented(half.dense()).T + _double(source.bias)
    assert packed.roundings == 1 + fused
    _close(packed(x_BK), exact_BN, packed.roundings)
    held = sum(buffer.untyped_storage().nbytes() for buffer in packed.buffers()) - 2 * 64
    assert held == kernel.quantised_bytes(64, 96, of(name))[0] == packed.operand.size
    assert (packed.operand.values, packed.operand.unit) == (64 * 96 // 2, f"{name} 2:4")


def test_what_cusparselt_does_not_take_is_said(fake_cusparselt: Any) -> None:
    kernel = fake_cusparselt()
    assert kernel.unsuitable_format(of("int8"), 64, 96, torch.bfloat16) is None
    assert "does not multiply fp8_e5m2: pick reference" in kernel.unsuitable_format(
        of("fp8_e5m2"), 64, 96, torch.bfloat16
    )
    assert "multiples of 32" in kernel.unsuitable_format(of("int8"), 48, 96, torch.bfloat16)
    assert "--dtype bf16, or cusparselt:fused=no" in kernel.unsuitable_format(of("int8"), 64, 96, torch.float16)
    assert fake_cusparselt(fused=False).unsuitable_format(of("int8"), 64, 96, torch.float16) is None


def test_cusparselt_gives_float16_of_plain_sums(fake_cusparselt: Any) -> None:
    source = GeneratedWeights(64, 96, torch.float16, CPU, with_bias=True)
    half, x_BK = Piece(source, mask=build_mask("random", source)), torch.randn(5, 96).half()
    packed = fake_cusparselt(search=False, fused=False).pack_quantised(half, source.bias, of("int8"))
    exact_BN = of("int8").represented(x_BK) @ of("int8").represented(half.dense()).T + _double(source.bias)
    _close(packed(x_BK), exact_BN)


def test_a_search_is_of_the_dtype_and_of_what_it_gives(fake_cusparselt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(key: str, search: Any) -> dict[str, Any]:
        asked.append(key)
        return {"setting": [7, 1, -1], "turned_away": [], "failed": ""}

    monkeypatch.setattr(cusparselt, "library_key", lambda device: "GPU")
    monkeypatch.setattr(cusparselt._algorithms, "get", get)
    source = GeneratedWeights(32, 64, torch.bfloat16, CPU, with_bias=True)
    half, x_BK = Piece(source, mask=build_mask("1100", source)), torch.ones(20, 64, dtype=torch.bfloat16)
    fake_cusparselt().pack_quantised(half, source.bias, of("int8"))(x_BK)
    fake_cusparselt(fused=False).pack_quantised(half, source.bias, of("int8"))(x_BK)
    fake_cusparselt(fused=False).pack_quantised(half, source.bias, of("fp8"))(x_BK)
    fake_cusparselt().pack(half, source.bias)(x_BK)
    assert asked == [
        "GPU N32 K64 B32-32 int8 bias=False to=bfloat16",
        "GPU N32 K64 B32-32 int8 bias=False to=int32",
        "GPU N32 K64 B32-32 float8_e4m3fn bias=False to=float32",
        "GPU N32 K64 B24-32 bfloat16 bias=True",
    ]


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_a_trial_finds_a_wrong_product_in_eight_bits(stored: torch.dtype) -> None:
    trial = Trial(64, 96, 16, stored, False, CPU)
    y_BN = trial.x_BK.double() @ trial.w_NK.double().T
    assert trial.w_NK.dtype == trial.x_BK.dtype == stored
    assert trial.is_right(y_BN.bfloat16())
    y_BN[3, 5] += y_BN.square().mean().sqrt()
    assert not trial.is_right(y_BN.bfloat16())


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_weights_whose_sums_overflow_are_refused_in_words(name: str) -> None:
    w_NK = torch.ones(16, 64)
    w_NK[5, 7] = 1e37
    with pytest.raises(InputError, match=r"row 5 of W goes up to 1e\+37.*sums of its 64 products overflow"):
        PackedDenseQuantised(TensorWeights(w_NK), None, of(name))


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_nothing_goes_backward(name: str) -> None:
    packed = PackedDenseQuantised(GeneratedWeights(16, 16, torch.float32, CPU), None, of(name))
    with pytest.raises(InputError, match="quantised weights go forward alone"):
        packed.grad_input(torch.ones(2, 16))


def test_formats_are_found_by_name_and_by_what_they_store() -> None:
    assert FORMATS.names() == ("fp8", "fp8_e5m2", "int8", "plain")
    assert build_format("plain") is None
    for name in SPARSE_CORES:
        assert formats.format_of(of(name).stored).name == name
    for dtype in (torch.float16, torch.float8_e5m2):
        with pytest.raises(InputError, match="no format stores"):
            formats.format_of(dtype)
    with pytest.raises(UnknownName, match="no format is named 'int4'"):
        build_format("int4")
    with pytest.raises(InputError, match="'plain' takes no parameter"):
        build_format("plain:compiled=yes")


@pytest.mark.parametrize("kernel", [name for name in KERNELS.names() if not KERNELS.get(name).formats])
def test_a_kernel_that_takes_no_format_names_those_that_do(kernel: str) -> None:
    found = build_kernel(kernel).unsuitable_format(of("fp8"), 64, 64, torch.bfloat16)
    assert (found is None) == (kernel == "auto")
    assert found is None or "pick cusparselt or reference" in found
    assert (kernel == "cutlass") == ("torchao" in str(found))


@pytest.mark.parametrize(
    ("name", "has", "needs"),
    [
        ("fp8", (8, 6), "8.9"),
        ("fp8", (8, 9), None),
        ("int8", (7, 5), "8.0"),
        ("fp8_e5m2", (8, 9), "9.x"),
        ("fp8_e5m2", (9, 0), None),
        ("fp8_e5m2", (10, 0), "9.x"),
    ],
)
def test_a_gpu_that_cannot_is_told_what_it_takes(
    name: str, has: tuple[int, int], needs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = of(name).unavailable(torch.device("cuda", 0), torch.bfloat16)
    assert (found is None) == (needs is None)
    assert found is None or (f"compute capability {needs}" in found and "{}.{}".format(*has) in found)


def test_weights_in_e5m2_take_a_cublas_that_has_scales_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for cuda, able in (("12.8", False), ("12.9", True), ("13.0", True), (None, False)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert (of("fp8_e5m2").unavailable(torch.device("cuda", 0), torch.bfloat16) is None) == able
    assert "choose --dtype bf16" in str(of("fp8").unavailable(torch.device("cuda", 0), torch.float16))


def test_each_matrix_is_stored_in_numbers_of_its_own() -> None:
    source = GeneratedWeights(16, 32, torch.float32, CPU)
    packed = PackedDenseQuantised(source, None, of("fp8_e5m2"))
    x = packed.stored(torch.randn(3, 32))
    assert (x.numbers.dtype, packed.q_NK.dtype) == (torch.float8_e4m3fn, torch.float8_e5m2)
    assert (x.numbers.double().abs().amax(1) == 448).all()
    assert (packed.q_NK.double().abs().amax(1) == 57344).all()


def test_dtypes_that_no_format_is_for() -> None:
    assert "not torch.float64" in str(of("int8").unavailable(CPU, torch.float64))
    assert of("fp8").unavailable(CPU, torch.float16) is None


def test_quantised_weights_are_those_of_the_rows() -> None:
    source = GeneratedWeights(40, 32, torch.bfloat16, CPU, with_bias=True)
    own = QuantisedWeights(source, of("int8"))
    assert torch.equal(own.rows(3, 9), of("int8").represented(source.rows(3, 9)))
    assert (own.dtype, own.N, own.K) == (torch.float64, 40, 32)
    assert torch.equal(_double(own.bias), _double(source.bias))


def test_a_rate_that_nobody_measured_is_none_of_another() -> None:
    known = Ceilings(1e12, 0, {"bf16": 1e15, "int8": 2e15}, {"bf16": 1e15}, None, None, 0.0)
    assert known.flops_per_s("int8", "bf16") == 2e15
    assert known.flops_per_s("dense", "bf16") == known.flops_per_s("2:4", "bf16") == 1e15
    for unit in ("fp8", "fp8 2:4", "int8 2:4"):
        with pytest.raises(NoCeiling, match=unit):
            known.flops_per_s(unit, "bf16")
    assert replace(known, sparse_flops_per_s={"fp8": 3e15}).flops_per_s("fp8 2:4", "bf16") == 3e15


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_compiled_code_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is one graph, and what a compiler makes of a layer that has it is one too."""
    backend = {"backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(formats.base, "compiled", lambda function: torch.compile(function, **backend))
    source, x_BK = GeneratedWeights(64, 96, torch.bfloat16, CPU, with_bias=True), torch.randn(20, 96).bfloat16()
    half = Piece(source, mask=build_mask("random", source))
    kernel = build_kernel("reference")
    eager, compiled = of(name), of(f"{name}:compiled=yes")
    with torch.inference_mode():
        for make in (
            lambda format: PackedDenseQuantised(source, source.bias, format),
            lambda format: kernel.pack_quantised(half, source.bias, format),
        ):
            wanted = make(eager)(x_BK)
            assert torch.equal(make(compiled)(x_BK), wanted)
            assert torch.equal(torch.compile(make(eager), **backend)(x_BK), wanted)


def test_torch_has_no_cutlass_product_of_2to4_in_fp8() -> None:
    """If it has one, kernel cutlass is to have it: theory.md, 1.1."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    assert "aten::_sparse_semi_structured_mm" in names
    assert not [name for name in names if "spars" in name and ("f8" in name or "fp8" in name or "rowwise" in name)]
