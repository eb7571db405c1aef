"""Kept values and their positions: every bit, dtype and layout, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ANY,
    FLOATS,
    LAYOUTS,
    counts,
    equal,
    fours,
    is_2to4,
    mask_rows,
    matrices,
    matrix,
    rows,
    seeds,
    with_special,
)

from blockshock.errors import MaskError
from blockshock.machine import held_bytes
from blockshock.matrices import mask_checks
from blockshock.matrices.compressed import Compressed24, bits, expand, gather_kept, pick
from blockshock.matrices.kept import Kept, product, row_patterns_of
from blockshock.matrices.masks import DenseMask, TiledMask
from blockshock.matrices.positions import KeptMask, Positions, mask_positions, positions_of, unpacked
from blockshock.matrices.repeating_rows import RowPatterns
from blockshock.matrices.weights import GeneratedWeights

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")


@examples(500)
@given(data=st.data(), N=rows, K=fours, seed=seeds, dtype=st.sampled_from(ANY))
def test_compression_moves_every_bit(data: Any, N: int, K: int, seed: int, dtype: torch.dtype) -> None:
    w_NK = matrix(N, K, dtype, seed, data.draw(st.sampled_from(LAYOUTS)))
    w_NK = with_special(w_NK, seed) if dtype.is_floating_point else w_NK
    mask_NK = mask_rows(N, K, seed + 1)
    packed = Compressed24.from_tensor(w_NK, mask_NK)
    zero = torch.zeros((), dtype=dtype)
    wanted = torch.where(mask_NK, w_NK, zero)
    assert equal(packed.decompress(), wanted)
    assert equal(packed.values_NJ, w_NK[mask_NK].view(N, K // 2))
    start, stop = sorted(data.draw(st.tuples(counts, counts)))
    part = attempt(packed.decompress, start, stop)
    assert (part is None) == (not 0 <= start <= stop <= N)
    assert part is None or equal(part, wanted[start:stop])
    columns = attempt(packed.decompress_columns, start, stop)
    assert columns is None or equal(columns, wanted[:, start:stop])
    assert (columns is not None) == (start % 8 == 0 and (stop % 8 == 0 or stop == K) and 0 <= start <= stop <= K)
    other = matrix(N, K // 2, dtype, seed + 2, "transposed")
    packed.values_NJ.copy_(other)
    assert equal(packed.values_NJ, other)
    assert equal(expand(other, packed.positions)[mask_NK].view(N, -1), other)
    assert bits(packed.values_NJ).data_ptr() == packed.values_NJ.data_ptr()
    assert attempt(bits, torch.zeros(1, dtype=torch.complex128)) is None
    assert held_bytes(packed.buffers()) == N * K // 2 * w_NK.itemsize + N * -(-K // 8)


@examples(310)
@given(w=matrices(st.integers(0, 5), st.integers(0, 9), ANY), mask=matrices(st.integers(0, 5), st.integers(0, 9), ANY))
def test_what_does_not_fit_together_is_not_compressed(w: torch.Tensor, mask: torch.Tensor) -> None:
    mask_NK = mask.real > 0
    found = attempt(Compressed24.from_tensor, w, mask_NK)
    fits = tuple(w.shape) == tuple(mask.shape) and w.numel() > 0 and w.shape[1] % 4 == 0 and is_2to4(mask_NK)
    assert (found is not None) == fits
    assert mask_NK.shape[1] not in (4, 8) or (attempt(positions_of, mask_NK) is not None) == is_2to4(mask_NK)
    packed = Compressed24.from_tensor(torch.ones(4, 8), mask_rows(4, 8, 0))
    attempt(packed.write_rows, 2, w, mask_NK)


@examples(190)
@given(N=rows, K=fours, seed=seeds, dtype=st.sampled_from(FLOATS), cut=st.tuples(counts, counts))
def test_a_source_is_compressed_as_a_tensor_is(N: int, K: int, seed: int, dtype: torch.dtype, cut: Any) -> None:
    source, start, stop = GeneratedWeights(N, K, dtype, CPU, seed), *sorted(cut)
    mask = attempt(DenseMask(mask_rows(N, K, seed)).columns, start, stop)
    if mask is None:
        return
    found = Compressed24.from_source(source, slice(start, stop), mask)
    assert equal(found.decompress(), source.rows(0, N)[:, start:stop].where(mask.dense(), 0))
    assert attempt(Compressed24.from_source, source, slice(0, K), mask) is None or mask.K == K


@examples(250)
@given(N=rows, P=st.integers(1, 5), Q=st.sampled_from((4, 8, 12)), wide=st.integers(1, 4), seed=seeds, data=st.data())
def test_positions_are_those_of_the_mask_however_it_is_held(
    N: int, P: int, Q: int, wide: int, seed: int, data: Any
) -> None:
    K, tile = Q * wide, mask_rows(P, Q, seed)
    tiled = TiledMask(tile, N, K)
    mask_NK = tile.repeat(-(-N // P), wide)[:N]
    apart = torch.zeros(N, K + 3, dtype=torch.bool)[:, 3:].copy_(mask_NK)
    behind = torch.zeros(N * K + 1, dtype=torch.bool)[1:].view(N, K).copy_(mask_NK)
    held = KeptMask(positions_of(mask_NK), K)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, N), st.integers(0, N))))
    wanted = mask_positions(DenseMask(mask_NK))
    assert equal(held.dense(), mask_NK)
    assert equal(held.rows(start, stop), mask_NK[start:stop])
    assert equal(unpacked(wanted, K), mask_NK.nonzero()[:, 1].view(N, K // 4, 2) % 4)
    for mask in (tiled, held, DenseMask(apart), DenseMask(behind), tiled.complement().complement()):
        assert equal(Positions(mask).rows(start, stop), wanted[start:stop])
        assert equal(mask_positions(mask), wanted)


@examples(250)
@given(
    P=st.sampled_from((1, 2, 4)), times=st.integers(1, 3), K=fours, B=st.integers(1, 5), seed=seeds, tiled=st.booleans()
)
def test_kept_values_go_out_and_back(P: int, times: int, K: int, B: int, seed: int, tiled: bool) -> None:
    N, tile = P * times, mask_rows(P, 4, seed).repeat(1, K // 4)
    mask = TiledMask(tile, N, K) if tiled else DenseMask(tile.repeat(times, 1))
    whole, w_NK = mask.dense(), matrix(N, K, torch.float32, seed)
    kept, out_NK = Kept(mask, CPU), torch.empty(N, K)
    assert (row_patterns_of(mask) is not None) == (tiled and len({tuple(row) for row in tile.tolist()}) <= 4)
    values_NJ = kept.gather(w_NK)
    assert equal(values_NJ, w_NK[whole].view(N, -1))
    kept.scatter(values_NJ, out_NK)
    assert equal(out_NK, w_NK.where(whole, 0))
    x_BK, grad_y_BN = matrix(B, K, torch.float32, seed), matrix(B, N, torch.float32, seed + 1, "transposed")
    wanted = (grad_y_BN.double().T @ x_BK.double())[whole].view(N, -1)
    assert torch.equal(kept.gradient(grad_y_BN, x_BK, torch.float32, False).double(), wanted)
    assert torch.equal(product(grad_y_BN.T, x_BK, torch.float64), grad_y_BN.double().T @ x_BK.double())


@examples(250)
@given(
    P=st.integers(1, 5), Q=st.sampled_from((4, 8)), times=st.integers(1, 3), wide=st.integers(1, 2), B=rows, seed=seeds
)
def test_row_patterns_sort_and_split_and_give_back(P: int, Q: int, times: int, wide: int, B: int, seed: int) -> None:
    N, K, tile = P * times, wide * Q, mask_rows(P, Q, seed)
    patterns, w_NK = RowPatterns(tile, N), matrix(N, K, torch.bfloat16, seed)
    whole = tile.repeat(times, wide)
    assert len(patterns) == len({tuple(row) for row in tile.tolist()})
    assert equal(patterns.unsort(patterns.sort(w_NK)), w_NK)
    assert equal(patterns.dense(patterns.kept(w_NK)), w_NK.where(whole, 0)) or len(patterns) > 1
    assert equal(patterns.unsort(patterns.kept(w_NK)), w_NK[whole].view(N, -1))
    y_BN = matrix(B, N, torch.float32, seed)
    parts = patterns.split(y_BN)
    assert equal(patterns.join(parts), y_BN)
    sums = patterns.sum_columns([part @ torch.ones(part.shape[1], K // 2) for part in parts], K)
    for pattern, part in zip(patterns, parts, strict=True):
        ones = torch.zeros(B, K)
        pattern.kept.add(part.sum(1, keepdim=True).expand(B, K // 2).contiguous(), ones)
        sums = sums - ones
        taken = pattern.kept.take(w_NK)
        again = torch.zeros_like(w_NK)
        pattern.kept.put(taken, again)
        assert equal(pattern.kept.take(again), taken)
    assert not sums.any()


@examples(120)
@given(N=rows, K=fours, seed=seeds, row=st.integers(0, 20), group=st.integers(0, 20))
def test_the_first_wrong_group_is_named(N: int, K: int, seed: int, row: int, group: int) -> None:
    row, group = row % N, group % (K // 4)
    mask_NK = mask_rows(N, K, seed)
    wrong = mask_NK.clone()
    wrong[row, 4 * group] ^= True
    for check in (mask_checks.check_2to4, mask_positions):
        with pytest.raises(MaskError, match=f"row {row}, group {group} "):
            check(DenseMask(wrong))
    with pytest.raises(MaskError, match=f"row {row}, group {group} "):
        mask_checks.check_complementary(DenseMask(mask_NK), DenseMask(~wrong))
    w_NK = torch.zeros(N, K)
    w_NK[row, 4 * group] = float("nan")
    positions = positions_of(mask_NK)
    assert equal(pick(w_NK, unpacked(positions, K)), gather_kept(w_NK, positions))
