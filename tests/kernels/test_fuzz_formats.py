"""Formats, with every layout, dtype and odd number, beside float64."""

from __future__ import annotations

import math

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, LAYOUTS, SPECIAL, mask_rows, matrices, matrix, seeds, specs, with_special

from blockshock.kernels import FORMATS, PackedDenseQuantised, QuantisedWeights, build_format, build_kernel
from blockshock.kernels.formats import descaled, format_of, quantised, row_scales
from blockshock.matrices import Piece, TensorWeights
from blockshock.matrices.masks import DenseMask
from blockshock.measure import Sums, compare

pytestmark = pytest.mark.reliability
EIGHT_BITS = st.sampled_from(("int8", "fp8", "fp8_e5m2"))
STEPS = {"int8": (0.0, 1.0), "fp8": (2.0**-3, 2.0**-9), "fp8_e5m2": (2.0**-2, 2.0**-16)}
"""Of W's numbers: as a share of one, and the least, in scales."""
NARROW = (torch.float32, torch.bfloat16, torch.float16)
FINITE = tuple(value for value in SPECIAL if math.isfinite(value))


@examples(200)
@given(name=EIGHT_BITS, x_BK=matrices(st.integers(1, 9), st.integers(1, 40), NARROW), seed=seeds, odd=st.booleans())
def test_what_is_stored_is_what_the_definition_says(name: str, x_BK: torch.Tensor, seed: int, odd: bool) -> None:
    found = build_format(name)
    assert found is not None
    format = found.weights
    x_BK = with_special(x_BK, seed, FINITE).nan_to_num() if odd else x_BK
    q_BK, scale_B1 = format.quantise(x_BK)
    exact = format.represented(x_BK)
    assert torch.equal(q_BK.double() * scale_B1.double(), exact)
    assert q_BK.float().abs().max() <= format.largest
    # Half a step of the format at most: of a whole number, or of a mantissa of so many bits.
    share, least = STEPS[name]
    step = (x_BK.double().abs() * share).clamp(min=scale_B1.double() * least)
    assert ((exact - x_BK.double()).abs() <= 0.5001 * step).all()


@examples(120)
@given(
    name=EIGHT_BITS, N=st.integers(1, 40), K=st.sampled_from((4, 12, 16, 28)), B=st.integers(0, 20),
    dtype=st.sampled_from(FLOATS), layout=st.sampled_from(LAYOUTS), seed=seeds,
)  # fmt: skip
def test_products_are_those_of_what_is_stored(
    name: str, N: int, K: int, B: int, dtype: torch.dtype, layout: str, seed: int
) -> None:
    format = build_format(name)
    assert format is not None
    source = TensorWeights(matrix(N, K, dtype, seed), matrix(1, N, dtype, seed + 1)[0])
    x_BK = matrix(max(B, 1), K, dtype, seed + 2, layout)[:B]
    if dtype not in NARROW:
        assert "not torch.float64" in str(format.unavailable(torch.device("cpu"), dtype))
        return
    half = Piece(source, mask=DenseMask(mask_rows(N, K, seed)))
    for packed, weights in (
        (PackedDenseQuantised(source, source.bias, format), source),
        (build_kernel("reference").pack_quantised(half, source.bias, format), TensorWeights(half.dense(), source.bias)),
    ):
        own = QuantisedWeights(weights, format)
        # Zeros that sources nudge are not those of a mask: what is dropped rounds to zero in either.
        found = packed(x_BK)
        if B:
            sums = compare(found, format.represented(x_BK), own, packed.roundings, 0, 1, packed.sums)
            assert sums.of_bound <= 1


@examples(60)
@given(text=specs(FORMATS.names()))
def test_a_spec_of_a_format_is_one_or_refused(text: str) -> None:
    found = attempt(lambda: build_format(text) or True)
    assert found is None or found is True or format_of(found.stored).name in (found.name, "fp8")


@examples(40)
@given(w_NK=matrices(st.integers(1, 9), st.integers(1, 20), NARROW, special=True), multiple=st.sampled_from((1, 16)))
def test_weights_are_quantised_or_refused(w_NK: torch.Tensor, multiple: int) -> None:
    format = format_of(torch.int8)
    found = attempt(lambda: quantised(lambda a, b: w_NK[a:b], *w_NK.shape, format, w_NK.device, multiple))
    if found is None:
        assert not w_NK.double().abs().max() * w_NK.shape[1] * 127 <= 3e38
        return
    q_NK, scale_N = found
    N, K = w_NK.shape
    assert torch.equal(q_NK[:N, :K].double() * scale_N.double()[:, None], format.represented(w_NK))
    assert not q_NK[N:].any()
    assert not q_NK[:, K:].any()


@examples(60)
@given(
    name=EIGHT_BITS, w_NK=matrices(st.integers(1, 9), st.integers(2, 24), NARROW), at=st.integers(1, 23), seed=seeds,
    odd=st.booleans(),
)  # fmt: skip
def test_parts_that_share_the_scales_of_rows_are_the_parts_of_the_rows(
    name: str, w_NK: torch.Tensor, at: int, seed: int, odd: bool
) -> None:
    format = build_format(name)
    assert format is not None
    w_NK = with_special(w_NK, seed, FINITE).nan_to_num() if odd else w_NK
    (N, K), device = w_NK.shape, w_NK.device
    parts = [part for part in (w_NK[:, :at], w_NK[:, at:]) if part.shape[1]]
    rows = [lambda a, b, part=part: part[a:b] for part in parts]
    shared_N = torch.stack(
        [row_scales(of, N, part.shape[1], format, device) for of, part in zip(rows, parts, strict=True)]
    ).amax(0)
    assert torch.equal(shared_N, row_scales(lambda a, b: w_NK[a:b], N, K, format, device))
    whole = attempt(lambda: quantised(lambda a, b: w_NK[a:b], N, K, format, device))
    if whole is not None:
        found = [
            quantised(of, N, part.shape[1], format, device, 1, shared_N)[0]
            for of, part in zip(rows, parts, strict=True)
        ]
        assert torch.equal(torch.cat(found, 1).double(), whole[0].double())


@examples(40)
@given(sums_BN=matrices(st.integers(1, 5), st.integers(1, 5), (torch.float32,)), dtype=st.sampled_from(NARROW))
def test_sums_are_scaled_and_rounded_once(sums_BN: torch.Tensor, dtype: torch.dtype) -> None:
    scale_B1, scale_N = torch.full((len(sums_BN), 1), 0.5), torch.full((sums_BN.shape[1],), 0.25)
    bias = torch.ones(sums_BN.shape[1], dtype=dtype)
    assert torch.equal(descaled(sums_BN, scale_B1, scale_N, bias, dtype), (sums_BN * 0.125 + 1).to(dtype))
    assert torch.equal(descaled(sums_BN, scale_B1, None, None, dtype), (sums_BN * 0.5).to(dtype))


@examples(40)
@given(K=st.integers(1, 10**6), at_once=st.integers(1, 64), bits=st.integers(8, 30))
def test_what_sums_may_lose_grows_with_them(K: int, at_once: int, bits: int) -> None:
    cut = Sums(2.0**-bits, at_once, truncates=True)
    assert 0 < cut.error(K) <= cut.error(2 * K)
    assert Sums(2.0**-bits).bound(K) == K * 2.0**-bits < cut.bound(K)
    assert Sums(2.0**-bits).error(K) == 0
