"""Compressed24: every dtype, pattern and value bit for bit, in 9/16 of the bytes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from blockshock.errors import MaskError
from blockshock.machine import held_bytes
from blockshock.matrices import blocks_of_rows as blocks
from blockshock.matrices import compressed
from blockshock.matrices.compressed import Compressed24, bits
from blockshock.matrices.masks import DenseMask, Mask
from blockshock.matrices.named_masks import MASKS, SIX_PATTERNS, build_mask, pattern_mask
from blockshock.matrices.positions import positions_of
from blockshock.matrices.weights import GeneratedWeights, TensorWeights

pytestmark = pytest.mark.masks

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
few = examples(8)
seeds = st.integers(0, 2**32)
sizes = st.integers(1, 9)


def any_bits(N: int, K: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes as values: NaN of any payload, inf and −0.0 among them, and zeros in every third column."""
    stream = torch.Generator().manual_seed(seed)
    w_NK = torch.randint(256, (N, K * dtype.itemsize), dtype=torch.uint8, generator=stream).view(dtype)
    bits(w_NK)[:, 1::3] = 0
    return w_NK


def random_mask(N: int, K: int, seed: int = 0) -> Mask:
    return build_mask("random", GeneratedWeights(N, K, torch.float32, CPU, seed))


def masked_bits(w_NK: torch.Tensor, mask: Mask) -> torch.Tensor:
    return bits(w_NK).where(mask.dense(), 0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "row_blocks", lambda rows, size, **_: blocks.row_blocks(rows, size, block_bytes=1))


@every_dtype
@pytest.mark.parametrize("pattern", SIX_PATTERNS)
@few
@given(N=sizes, G=sizes, seed=seeds)
def test_round_trip_of_every_pattern_is_exact(pattern: str, dtype: torch.dtype, N: int, G: int, seed: int) -> None:
    w_NK, mask = any_bits(N, 4 * G, dtype, seed), pattern_mask(pattern, N, 4 * G)
    again = Compressed24.from_tensor(w_NK, mask).decompress()
    assert again.dtype == dtype
    assert torch.equal(bits(again), masked_bits(w_NK, mask))


@every_dtype
@few
@given(N=sizes, G=sizes, seed=seeds)
def test_round_trip_of_random_masks_is_exact(dtype: torch.dtype, N: int, G: int, seed: int) -> None:
    w_NK, mask = any_bits(N, 4 * G, dtype, seed), random_mask(N, 4 * G, seed)
    for packed in Compressed24.from_tensor(w_NK, mask), Compressed24.from_tensor(w_NK, mask.dense()):
        assert torch.equal(bits(packed.decompress()), masked_bits(w_NK, mask))
    halves = [Compressed24.from_tensor(w_NK, half).decompress() for half in (mask, mask.complement())]
    assert torch.equal(bits(halves[0]) | bits(halves[1]), bits(w_NK))


@pytest.mark.parametrize("integer", [0x7F81, 0x7FC1, 0xFFFF, 0x7F80, 0xFF80, 0x8000, 0x0000, 0x0001])
def test_kept_nan_payloads_infinities_and_zeros_survive(integer: int) -> None:
    w_NK = torch.full((2, 12), integer, dtype=torch.uint16).view(torch.bfloat16)
    packed = Compressed24.from_tensor(w_NK, pattern_mask("0101", 2, 12))
    assert packed.values_NJ.view(torch.uint16).tolist() == [[integer] * 6] * 2
    assert packed.decompress().view(torch.uint16).tolist() == [[0, integer] * 6] * 2


def test_kept_zeros_are_told_from_dropped_values() -> None:
    mask = random_mask(8, 16)
    packed = Compressed24.from_tensor(torch.zeros(8, 16), mask)
    packed.values_NJ.fill_(1)
    assert torch.equal(packed.decompress().bool(), mask.dense())


@every_dtype
@pytest.mark.parametrize("K", [8, 12, 4096])
def test_costs_half_the_values_and_four_bits_a_group(dtype: torch.dtype, K: int) -> None:
    packed = Compressed24(16, K, dtype, CPU)
    assert held_bytes(packed.buffers()) == 16 * (K // 2 * dtype.itemsize + (K // 4 + 1) // 2)


def test_takes_nine_sixteenths_of_the_dense_bytes_in_bf16() -> None:
    w_NK = torch.randn(64, 256).bfloat16()
    packed = Compressed24.from_tensor(w_NK, random_mask(64, 256))
    assert held_bytes(packed.buffers()) * 16 == w_NK.nbytes * 9


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize("columns", [slice(0, 24), slice(4, 16), slice(12, None)])
def test_from_source_equals_from_tensor(name: str, columns: slice) -> None:
    source = GeneratedWeights(36, 24, torch.bfloat16, CPU, seed=3)
    left, right, _ = columns.indices(24)
    mask = build_mask(name, source).columns(left, right)
    packed = Compressed24.from_source(source, columns, mask)
    wanted = Compressed24.from_tensor(source.rows(0, 36)[:, columns], mask)
    assert torch.equal(bits(packed.values_NJ), bits(wanted.values_NJ))
    assert torch.equal(packed.positions, wanted.positions)
    assert torch.equal(packed.decompress(), source.gather(columns, mask))


@few
@given(G=sizes, ends=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_decompress_of_any_rows(G: int, ends: tuple[int, int]) -> None:
    start, stop = sorted(ends)
    w_NK, mask = any_bits(20, 4 * G, torch.bfloat16, G), random_mask(20, 4 * G)
    packed = Compressed24.from_tensor(w_NK, mask)
    assert torch.equal(bits(packed.decompress(start, stop)), masked_bits(w_NK, mask)[start:stop])
    assert torch.equal(bits(packed.decompress(start)), masked_bits(w_NK, mask)[start:])


def test_rows_are_written_alone() -> None:
    mask, other = random_mask(9, 12), random_mask(9, 12, seed=1)
    w_NK, w_new_NK = torch.randn(9, 12), torch.randn(9, 12)
    packed = Compressed24.from_tensor(w_NK, mask)
    packed.write_rows(3, w_new_NK[3:5], other.rows(3, 5))
    wanted = w_NK.where(mask.dense(), 0)
    wanted[3:5] = w_new_NK.where(other.dense(), 0)[3:5]
    assert torch.equal(packed.decompress(), wanted)


@every_dtype
def test_new_values_are_those_of_the_same_mask_bit_for_bit(dtype: torch.dtype) -> None:
    mask = random_mask(6, 20)
    packed = Compressed24.from_tensor(any_bits(6, 20, dtype, 0), mask)
    w_new_NK = any_bits(6, 20, dtype, 1)
    packed.values_NJ.copy_(bits(w_new_NK)[mask.dense()].view(dtype).unflatten(0, (6, 10)))
    assert torch.equal(bits(packed.decompress()), masked_bits(w_new_NK, mask))


@pytest.mark.parametrize("K", [8, 12])
def test_any_wrong_position_bit_shows_in_the_round_trip(K: int) -> None:
    w_NK, mask = torch.randn(4, K), random_mask(4, K)
    packed = Compressed24.from_tensor(w_NK, mask)
    right = packed.decompress()
    for row in range(4):
        for bit in range(K):
            packed.positions[row, bit // 8] ^= 1 << bit % 8
            assert not torch.equal(packed.decompress()[row], right[row])
            packed.positions[row, bit // 8] ^= 1 << bit % 8
    assert torch.equal(right, w_NK.where(mask.dense(), 0))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("group", "kept"), [("1000", 1), ("1101", 3), ("0000", 0), ("1111", 4)])
def test_masks_that_are_not_2to4_are_refused(group: str, kept: int) -> None:
    mask_NK = random_mask(16, 12).dense()
    mask_NK[13, 8:] = torch.tensor([bit == "1" for bit in group])
    mask_NK[14:] = True
    source = GeneratedWeights(16, 12, torch.float32, CPU)
    for compress in (
        lambda: Compressed24.from_tensor(torch.ones(16, 12), mask_NK),
        lambda: Compressed24.from_source(source, slice(None), DenseMask(mask_NK)),
    ):
        with pytest.raises(MaskError, match=f"row 13, group 2 keeps {kept} of 4"):
            compress()


@pytest.mark.parametrize("shape", [(4, 12), (8, 8), (8, 16)])
def test_mask_and_matrix_must_agree_in_shape(shape: tuple[int, int]) -> None:
    mask, source = pattern_mask("1100", *shape), TensorWeights(torch.ones(8, 16))
    with pytest.raises(MaskError, match=r"matrix \(8, 12\) and mask .* differ in shape"):
        Compressed24.from_tensor(torch.ones(8, 12), mask)
    with pytest.raises(MaskError, match=r"matrix \(8, 12\) and mask .* differ in shape"):
        Compressed24.from_source(source, slice(0, 12), mask)


def test_matrices_may_lie_in_any_order() -> None:
    w_NK, mask = torch.randn(12, 8).T, random_mask(8, 12)
    assert torch.equal(Compressed24.from_tensor(w_NK, mask).decompress(), w_NK.where(mask.dense(), 0))


@pytest.mark.parametrize(("counted_from", "named"), [((), 1), ((8,), 9)])
def test_a_row_that_is_not_2to4_is_named_as_it_is_counted(counted_from: tuple[int, ...], named: int) -> None:
    mask_RK = torch.tensor([[True, True, False, False], [True, True, True, False]])
    with pytest.raises(MaskError, match=f"row {named}, group 0 keeps 3 of 4"):
        positions_of(mask_RK, *counted_from)
