"""Weights, workloads and accuracy: any shape, dtype, layout and value, beside float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import FLOATS, HUGE, LAYOUTS, OTHERS, SPECIAL, counts, mask_rows, matrices, matrix, seeds, with_special

from blockshock.errors import InputError
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.named_masks import build_mask
from blockshock.matrices.weights import (
    CastWeights,
    GeneratedWeights,
    TensorWeights,
    TransposedWeights,
    WeightSource,
    check_finite,
    nudge_zeros,
)
from blockshock.matrices.workloads import WORKLOADS, Workload, build_workload
from blockshock.measure.accuracy import Accuracy, ErrorSums, compare, unit_roundoff
from blockshock.phases.backward import LOSSES

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")
rows = st.sampled_from((1, 2, 3, 4, 7, 12))
fours = st.sampled_from((4, 8, 12, 20))
ANY = (*FLOATS, *OTHERS)


@examples(560)
@given(
    w=matrices(st.integers(0, 5), st.integers(0, 9), ANY, special=True),
    bias=st.none() | matrices(st.just(1), st.integers(0, 5), ANY, special=True),
    finite=st.booleans(),
)
def test_a_layers_weights_are_taken_or_refused(w: torch.Tensor, bias: torch.Tensor | None, finite: bool) -> None:
    if finite and w.is_floating_point():
        w = w.nan_to_num(0.0, 0.0, -0.0)
    vector = None if bias is None else bias[0]
    source = attempt(TensorWeights, w, vector)
    fits = w.is_floating_point() and w.numel() > 0 and bool(w.isfinite().all())
    fits = fits and (vector is None or (vector.shape == (len(w),) and bool(vector.isfinite().all())))
    assert (source is not None) == (fits and (vector is None or vector.is_floating_point()))
    if source is None:
        return
    found = source.rows(0, source.N)
    assert torch.equal(found, w)
    assert torch.equal(found.signbit(), w.signbit()), "of zeros too"
    nudged = nudge_zeros(w)
    assert torch.equal(nudged.where(w != 0, 0), w.where(w != 0, 0))
    assert torch.equal(nudged.abs()[w == 0], torch.full_like(w[w == 0], torch.finfo(w.dtype).tiny))
    assert source.bias is None or (source.bias.dtype == w.dtype and source.bias.shape == (source.N,))


@examples(310)
@given(data=st.data(), N=rows, K=fours, seed=seeds, dtype=st.sampled_from(FLOATS), layout=st.sampled_from(LAYOUTS))
def test_any_part_of_any_source_is_that_of_the_whole(
    data: Any, N: int, K: int, seed: int, dtype: torch.dtype, layout: str
) -> None:
    source: WeightSource = TensorWeights(matrix(N, K, torch.float32, seed, layout)).cast(dtype)
    if data.draw(st.booleans()):
        source = GeneratedWeights(N, K, dtype, CPU, seed, with_bias=True)
    whole = source.rows(0, N)
    if N % 4 == 0 and data.draw(st.booleans()):
        source, whole = TransposedWeights(source), whole.T
    N, K = source.N, source.K
    start, stop = data.draw(st.tuples(counts, counts))
    found = attempt(source.rows, start, stop)
    assert (found is not None) == (0 <= start <= stop <= N)
    assert found is None or torch.equal(found, whole[start:stop])
    left, right, first, last = (data.draw(st.none() | st.integers(-20, 20)) for _ in range(4))
    columns, part = slice(left, right), slice(first, last)
    wanted, mask = whole[part, columns], None
    if len(wanted) and columns == slice(None) and K % 4 == 0:
        mask = DenseMask(mask_rows(len(wanted), K, seed))
        wanted = wanted.where(mask.dense(), 0)
    gathered = attempt(source.gather, columns, mask, part)
    assert gathered is None or torch.equal(gathered, wanted)
    assert gathered is not None or 0 in wanted.shape
    assert torch.equal(CastWeights(source, torch.float16).rows(0, N), whole.to(torch.float16))


@examples(190)
@given(N=counts, K=counts, seed=counts, dtype=st.sampled_from(ANY))
def test_generated_weights_have_any_size_that_a_layer_has(N: int, K: int, seed: int, dtype: torch.dtype) -> None:
    source = attempt(GeneratedWeights, N, K, dtype, CPU, seed)
    assert (source is not None) == (dtype.is_floating_point and 0 < N < 2**31 and 0 < K < 2**31 and K % 4 == 0)
    if source is not None and K < 100:
        found = source.rows(0, min(N, 3))
        assert found.shape == (min(N, 3), K)
        assert found.isfinite().all()
        assert (found != 0).all()


@examples(190)
@given(matrices(st.integers(0, 6), st.integers(0, 6), ANY, special=True))
def test_what_is_not_finite_is_named(tensor: torch.Tensor) -> None:
    bad = (~tensor.isfinite()).nonzero().tolist()
    if not bad:
        check_finite(tensor, "X")
        return
    with pytest.raises(InputError, match=f"at row {bad[0][0]}, column {bad[0][1]}"):
        check_finite(tensor, "X")


def with_numbers(name: str, draw: Any) -> str:
    """A workload's spec with numbers that fit its parameters, and some that do not."""
    number = st.floats(-4, 4) | st.sampled_from((*SPECIAL, 0, 1, -1, 5, *HUGE, "yes", "no"))
    parameters = {
        "gaussian": ("mean", "std"),
        "uniform": ("low", "high"),
        "activation_like": ("spread", "clip"),
        "attention_like": ("window", "head"),
        "vision_conv": ("stride", "smooth"),
        "transformer_mlp": ("norm",),
    }.get(name, ())
    chosen = [key for key in parameters if draw(st.booleans())]
    return ":".join([name, *(f"{key}={draw(number)}" for key in chosen)])


@pytest.mark.parametrize("name", WORKLOADS.names())
@examples(70)
@given(data=st.data(), B=st.integers(-1, 9) | st.sampled_from((513, *HUGE)), K=st.integers(0, 16), seed=counts)
def test_workloads_draw_finite_inputs_or_refuse(name: str, data: Any, B: int, K: int, seed: int) -> None:
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    workload = attempt(build_workload, with_numbers(name, data.draw))
    if workload is None:
        return
    N, K = data.draw(st.sampled_from(workload.shapes or ((8, K),)))
    x_BK = attempt(workload.inputs, B, K, dtype, CPU, seed, N)
    assert x_BK is None or (x_BK.shape == (B, K) and x_BK.dtype == dtype and bool(x_BK.isfinite().all()))
    if x_BK is not None:
        assert torch.equal(x_BK, workload.inputs(B, K, dtype, CPU, seed, N))
    source = attempt(workload.weights, N, K, dtype, CPU, seed)
    assert source is None or (source.N, source.K, source.dtype) == (N, K, dtype)
    assert attempt(workload.inputs, 0, K, dtype, CPU, seed, N) is None


@examples(120)
@given(B=rows, K=fours, seed=seeds, value=st.sampled_from(SPECIAL))
def test_an_own_workload_that_draws_what_is_not_finite_is_refused(B: int, K: int, seed: int, value: float) -> None:
    class Own(Workload):
        def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
            return with_special(torch.rand(B, K, generator=stream), seed, (value,))

    x_BK = attempt(Own().inputs, B, K, torch.float32, CPU, seed, 4)
    assert x_BK is None or x_BK.isfinite().all()


@examples(190)
@given(y=matrices(st.integers(1, 5), st.integers(1, 9), FLOATS), seed=seeds)
def test_losses_are_those_of_their_names(y: torch.Tensor, seed: int) -> None:
    x, t = y.double(), matrix(*y.shape, torch.float64, seed)
    oracle = {"sum": x.sum(), "mse_zero": (x * x).mean(), "mse_target": ((x - t) ** 2).mean()}
    for name in LOSSES.names():
        found = LOSSES.get(name)(y.double(), t)
        assert torch.allclose(found, oracle[name])


@examples(250)
@example(N=4, K=4, B=1, seed=0, dtype=torch.float32, damage=float("nan"))
@given(
    N=rows, K=fours, B=rows, seed=seeds, dtype=st.sampled_from(FLOATS[:3]), damage=st.none() | st.sampled_from(SPECIAL)
)
def test_an_output_passes_exactly_if_it_is_right(
    N: int, K: int, B: int, seed: int, dtype: torch.dtype, damage: float | None
) -> None:
    source = GeneratedWeights(N, K, dtype, CPU, seed, with_bias=True)
    x_BK = matrix(B, K, dtype, seed, "transposed")
    assert source.bias is not None
    exact = x_BK.double() @ source.rows(0, N).double().T + source.bias.double()
    y_BN = exact.to(dtype)
    if damage is not None:
        y_BN[0, 0] = damage
    parts = [compare(y_BN, x_BK, source, roundings=2, index=index, count=2) for index in range(2)]
    accuracy = Accuracy.of(parts[0] + parts[1] + ErrorSums(), roundings=2)
    off = abs(y_BN[0, 0].double() - exact[0, 0]).item()
    bound = (x_BK.double().abs() @ source.rows(0, N).double().abs().T + source.bias.double().abs())[0, 0].item()
    allowed = (2 * unit_roundoff(dtype) + K * unit_roundoff(torch.float32)) * bound
    if not off <= allowed:
        assert accuracy.failure() is not None
    if damage is None and dtype != torch.float32:
        assert accuracy.of_bound <= 1
    assert math.isfinite(accuracy.error_ratio_limit)
    assert build_mask("1100", source).N == N
