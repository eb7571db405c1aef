"""Kernels, with every mask, dtype and layout, beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import ANY, FLOATS, LAYOUTS, equal, mask_rows, matrices, matrix, seeds

from blockshock.kernels import KERNELS, build_kernel
from blockshock.kernels.backward import backward_of
from blockshock.kernels.base import packed_bytes
from blockshock.kernels.layout import dense_rows, is_dense
from blockshock.kernels.octaves import bucket_of, octave_of
from blockshock.kernels.transpose import TileOrder
from blockshock.machine.memory import held_bytes
from blockshock.matrices.masks import DenseMask, Mask, TiledMask
from blockshock.matrices.named_masks import MASKS, build_mask, pattern_mask, transposable_tiles
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import TensorWeights

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")
CPU_KERNELS = ("dense", "reference", "gathered", "auto")
sizes = st.sampled_from((4, 8, 12, 20))
batches = st.sampled_from((0, 1, 2, 3, 7))


def drawn_mask(kind: str, N: int, K: int, seed: int) -> Mask:
    source = TensorWeights(matrix(N, K, torch.float32, seed))
    return DenseMask(mask_rows(N, K, seed)) if kind == "given" else build_mask(kind, source)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@examples(160)
@given(
    data=st.data(), N=sizes, K=sizes, B=batches, seed=seeds, mask=st.sampled_from((*MASKS.names(), "given")),
    dtype=st.sampled_from(FLOATS),
)  # fmt: skip
def test_kernels_multiply_as_float64_does(
    kernel: str, data: Any, N: int, K: int, B: int, seed: int, mask: str, dtype: torch.dtype
) -> None:
    source = TensorWeights(matrix(N, K, dtype, seed, data.draw(st.sampled_from(LAYOUTS))))
    half = Piece(source, slice(0, K), drawn_mask(mask, N, K, seed))
    chosen = build_kernel(kernel).resolve(half, B, True, lambda seconds: seconds)
    if attempt(lambda: chosen.check(half) or True) is None:
        assert chosen.unavailable(CPU, dtype) or chosen.unsuitable(N, K, dtype, half.mask)
        return
    bias = matrix(1, N, dtype, seed + 1)[0]
    packed = chosen.pack(half, bias, backward=True)
    x_BK, grad_y_BN = (
        matrix(max(B, 1), width, dtype, seed + 2, data.draw(st.sampled_from(LAYOUTS)))[:B] for width in (K, N)
    )
    w64 = source.rows(0, N).double() * half.mask.dense()
    close = {"rtol": torch.finfo(dtype).eps, "atol": 1e-30}
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w64.T + bias.double(), **close)
    torch.testing.assert_close(packed.grad_input(grad_y_BN).double(), grad_y_BN.double() @ w64, **close)
    other = Piece(TensorWeights(matrix(N, K, dtype, seed + 3)), slice(0, K), half.mask)
    packed.write(packed.kept_of(other.dense()))
    w64 = other.source.rows(0, N).double() * half.mask.dense()
    torch.testing.assert_close(packed(x_BK).double(), x_BK.double() @ w64.T + bias.double(), **close)
    packed.recompress(half.dense())
    assert torch.equal(packed.kept_of(half.dense()), packed.values)
    assert torch.equal(packed.disarrange(packed.arrange(x_BK.new_ones(N, 2))), x_BK.new_ones(N, 2))
    assert packed.operand.values == packed.values.numel()
    assert held_bytes([packed.values]) <= max(chosen.weight_bytes(N, K, dtype.itemsize), packed.values.nbytes)


@examples(250)
@given(
    kernel=st.sampled_from(KERNELS.names()),
    N=st.integers(1, 2**20),
    K=st.integers(1, 2**20),
    dtype=st.sampled_from(FLOATS),
)
def test_kernels_say_what_they_take_and_hold(kernel: str, N: int, K: int, dtype: torch.dtype) -> None:
    K = -(-K // 8) * 8
    built, size = build_kernel(kernel), (N, K, dtype.itemsize)
    for reason in (built.unavailable(CPU, dtype), built.unsuitable(N, K, dtype)):
        assert reason is None or len(reason.split()) > 3
    assert N * K // 2 * dtype.itemsize <= built.weight_bytes(*size) <= built.build_bytes(*size)
    most = built.backward_bytes(*size, None)
    assert 0 <= most <= N * K * dtype.itemsize + N * K + 16 * K + 2**13  # of few rows whole steps are held
    for tile in ("1100", "tile"):
        mask = TiledMask(pattern_mask("1100", 4, 4).dense() if tile == "1100" else transposable_tiles(CPU)[0], N, K)
        assert 0 <= built.backward_bytes(*size, mask) <= most
    assert built.weight_bytes(*size) <= max(N * K * dtype.itemsize, packed_bytes(*size) + N)


@examples(190)
@given(N=sizes, K=sizes, seed=seeds, kind=st.sampled_from(("tile", "tile_random", "tile_magnitude")))
def test_kept_values_turn_as_the_matrix_does(N: int, K: int, seed: int, kind: str) -> None:
    mask, w_NK = drawn_mask(kind, N, K, seed), matrix(N, K, torch.float32, seed)
    whole = mask.dense()
    out_KM, rows_NJ, values_NJ = torch.empty(K, N // 2), torch.empty(N, K // 2), w_NK[whole].view(N, -1)
    TileOrder(mask, CPU).transpose(values_NJ, out_KM, rows_NJ)
    assert torch.equal(out_KM, w_NK.T[whole.T].view(K, -1))
    assert torch.equal(rows_NJ, values_NJ)
    half = Piece(TensorWeights(w_NK + 9), slice(0, K), mask)
    turned = half.transposed()
    assert torch.equal(turned.dense(), half.dense().T)
    assert torch.equal(backward_of(build_kernel("reference"), half)(torch.eye(N)), half.dense())
    assert torch.equal(half.kept_values(0, N), half.dense()[whole].view(N, -1))


@examples(190)
@given(x=matrices(st.integers(1, 9), st.integers(1, 20), ANY), multiple=st.sampled_from((1, 8)))
def test_rows_lie_densely_with_the_same_bits(x: torch.Tensor, multiple: int) -> None:
    found = dense_rows(x, multiple)
    assert is_dense(found)
    assert len(found) == -(-len(x) // multiple) * multiple
    assert equal(found[: len(x)], x)
    assert not found[len(x) :].any()
    assert (found is x) == (is_dense(x) and len(x) % multiple == 0)


@examples(120)
@given(st.integers(1, 2**30), st.sampled_from((8, 16)))
def test_lengths_of_an_octave_share_a_search(tokens: int, multiple: int) -> None:
    most = bucket_of(tokens)
    assert tokens <= most == bucket_of(most)
    assert most == 8 or most < 2 * tokens
    least, most = octave_of(tokens, multiple)
    padded = -(-tokens // multiple) * multiple
    assert least <= padded <= most
    assert least % multiple == most % multiple == 0
    assert octave_of(least, multiple) == octave_of(most, multiple) == (least, most)
    assert octave_of(least - multiple, multiple) != (least, most) or least == multiple
