"""The kernel streamed in eight bits, as far as a CPU can see it: how tensor cores read its packing; its launches."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from strategies import mask_rows, matrix

from blockshock.kernels import Format, QuantisedWeights, build_format, build_kernel, streamed_launch, streamed_layout
from blockshock.kernels.formats import Order
from blockshock.kernels.streamed_bytes import PackedStreamedBytes
from blockshock.kernels.streamed_launch import Scales
from blockshock.kernels.streamed_plan import Plan
from blockshock.matrices import GeneratedWeights, MaskedWeights, Piece, build_mask, mask_positions
from blockshock.matrices.masks import DenseMask

FORMATS = ("int8", "fp8")
COLUMNS = 256
"""Of a step."""


def _format(name: str) -> Format:
    format = build_format(name)
    assert format is not None
    return format


def _words(metadata: torch.Tensor) -> torch.Tensor:
    """(tiles, steps, 32 lanes, 4): one for each 64 columns."""
    weights = torch.tensor([1 << 8 * byte for byte in range(4)])
    return metadata.unflatten(3, (4, 4)).to(torch.int64) @ weights


def _places(metadata: torch.Tensor, fp8: bool) -> torch.Tensor:
    """The columns (N, K/2) of the kept values of each row, in their order, as the tensor cores see them, lane by lane.

    PTX ISA, metadata of mma.sp: m16n8k64 with 8-bit operands; of m16n8k32 with 16-bit ones, selectors 0 and 1, with
    what bytes.cu makes of a word: of the groups that a product has its first four are the even ones.
    """
    tiles, steps = metadata.shape[:2]
    words, found = _words(metadata), torch.zeros(16 * tiles, steps * COLUMNS // 2, dtype=torch.int64)
    for tile, step, quarter, lane in torch.cartesian_prod(*map(torch.arange, (tiles, steps, 4, 32))).tolist():
        row, thread = divmod(lane, 4)
        word = int(words[tile, step, lane, quarter])
        for nibble in range(8):
            if fp8:
                product, half = divmod(thread, 2)
                group, below = 8 * product + 2 * (nibble % 4) + half, nibble // 4
            else:
                group, below = 8 * (thread // 2) + nibble, thread % 2
            group += step * COLUMNS // 4 + 16 * quarter
            for kept in range(2):
                at = word >> (4 * nibble + 2 * kept) & 3
                found[16 * tile + row + 8 * below, 2 * group + kept] = 4 * group + at
    return found


@pytest.mark.parametrize(("N", "K"), [(16, 32), (48, 160), (32, 544)])
@pytest.mark.parametrize("name", FORMATS)
def test_the_tensor_cores_see_the_mask(name: str, N: int, K: int) -> None:
    mask_NK = mask_rows(N, K, 0)
    metadata = streamed_layout.in_fragments_of_bytes(mask_positions(DenseMask(mask_NK)), name == "fp8")
    seen_NK = torch.zeros(N, metadata.shape[1] * COLUMNS, dtype=torch.bool)
    seen_NK.scatter_(1, _places(metadata, name == "fp8"), True)
    assert torch.equal(seen_NK[:, :K], mask_NK)
    assert metadata.nbytes == streamed_layout.metadata_bytes(N, K, COLUMNS)
    assert metadata.is_contiguous()


@pytest.mark.parametrize("mask", ["1001", "random", "tile_random"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_packed_is_what_is_stored_of_what_is_kept(name: str, mask: str) -> None:
    source = GeneratedWeights(64, 288, torch.bfloat16, "cpu", with_bias=True)
    piece, format = Piece(source, mask=build_mask(mask, source)), _format(name)
    packed = build_kernel("streamed").pack_quantised(piece, source.bias, format)
    assert isinstance(packed, PackedStreamedBytes)
    dense_NK = torch.zeros(64, 2 * COLUMNS, dtype=torch.float64)
    kept_NJ = torch.nn.functional.pad(packed.kept_NJ.double(), (0, COLUMNS - 144))
    whole = packed.metadata.expand(4, 2, 32, 16)  # of a mask that repeats one tile's are held
    dense_NK.scatter_(1, _places(whole, name == "fp8"), kept_NJ)
    wanted_NK = QuantisedWeights(MaskedWeights(source, piece.kept), format).rows(0, 64)
    assert torch.equal(dense_NK[:, :288] * packed.scale_N.double()[:, None], wanted_NK)
    held = sum(buffer.nbytes for buffer in packed.buffers()) - 2 * 64
    assert held == packed.operand.size == build_kernel("streamed").quantised_bytes(64, 288, format, piece.kept)[0]
    assert (packed.operand.values, packed.operand.unit, packed.shape) == (64 * 144, f"{name} 2:4", (64, 288))
    assert packed.roundings == 1


def test_x_lies_in_fp8_as_a_lanes_words_are_split() -> None:
    """Lane t = 2u + v of a token has its bytes 4t to 4t + 3 of each 16: the pairs v of the groups 2u and 2u + 1."""
    (found,) = Order.CROSSED.of(torch.arange(64, dtype=torch.int8)[None])
    for segment, u, v in itertools.product(range(4), range(2), range(2)):
        word = found[16 * segment + 4 * (2 * u + v) :][:4].tolist()
        first = 16 * segment + 8 * u + 2 * v
        assert word == [first, first + 1, first + 4, first + 5]


@pytest.mark.parametrize("layout", ["whole", "transposed", "odd columns"])
@pytest.mark.parametrize("name", FORMATS)
def test_x_is_stored_as_the_product_reads_it(name: str, layout: str) -> None:
    source = GeneratedWeights(32, 64, torch.bfloat16, "cpu")
    packed = build_kernel("streamed").pack_quantised(
        Piece(source, mask=build_mask("1100", source)), None, _format(name)
    )
    x_BK = matrix(5, 64, torch.bfloat16, 3, layout)
    numbers, scale_B1 = packed.stored(x_BK)
    plain, wanted_B1 = _format(name).quantise(x_BK)
    assert torch.equal(scale_B1, wanted_B1)
    assert torch.equal(numbers, Order.CROSSED.of(plain) if name == "fp8" else plain)


def test_scales_that_are_shared_are_taken() -> None:
    source = GeneratedWeights(32, 64, torch.bfloat16, "cpu")
    piece, format = Piece(source, mask=build_mask("1100", source)), _format("int8")
    packed: Any = build_kernel("streamed").pack_quantised(piece, None, format, torch.ones(32))
    assert torch.equal(packed.scale_N, torch.ones(32))
    assert torch.equal(packed.kept_NJ.double(), piece.kept_values(0, 32).double().round())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("name", "tokens", "splits"), [("int8", 5, 1), ("int8", 40, 3), ("fp8", 17, 1), ("fp8", 40, 3)]
)
def test_each_launch_has_its_tokens_scales_and_counts_pairs(
    name: str, tokens: int, splits: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    N, K, plan = 400, 96, Plan(2, 1, 5, 2, splits, False, True)
    launches: list[tuple[Any, ...]] = []
    monkeypatch.setattr(streamed_launch, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(
        streamed_launch, "_kernel", lambda *key: lambda **given: launches.append((key, given["args"], given["grid"]))
    )
    stored = _format(name).stored
    x_BK, values_NJ = (torch.zeros(size, dtype=stored) for size in ((tokens, K), (N, K // 2)))
    bias = torch.zeros(N, dtype=torch.bfloat16) if biased else None
    scales = Scales(torch.zeros(tokens, 1), torch.zeros(N), torch.bfloat16)
    y_BN = streamed_launch.multiplied(values_NJ, torch.zeros(0), x_BK, bias, plan, scales=scales)
    assert (y_BN.shape, y_BN.dtype) == ((tokens, N), torch.bfloat16)
    assert all(key[0] in ("streamed_product", "add_splits") for key, _, _ in launches)
    assert all((key[1], key[5]) == (torch.bfloat16, name == "fp8") for key, _, _ in launches)
    products = [args for key, args, _ in launches if key[0] == "streamed_product"]
    for start, args in zip(range(0, tokens, 16), products, strict=True):
        count = min(16, tokens - start)
        assert args[2].data_ptr() == x_BK[start].data_ptr()
        assert args[6:11] == [N, K // 2, count, K // 2, int(biased)]
        assert args[11].data_ptr() == scales.of_tokens[start].data_ptr()
        assert args[12] is scales.of_channels
    sums = [args for key, args, _ in launches if key[0] == "add_splits"]
    assert len(sums) == (0 if splits == 1 else len(products))
    for args, product in zip(sums, products, strict=False):
        assert args[3:] == [N, product[8], int(biased), *product[11:]]


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("name", [None, *FORMATS])
def test_it_begins_before_one_token_is_quantised_and_its_source_waits_for_that(
    name: str | None, clusters: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[tuple[bool, bool]] = []
    monkeypatch.setattr(streamed_launch, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(
        streamed_launch, "_kernel", lambda *key: lambda **given: launches.append((key[-1], given["early"]))
    )
    dtype = torch.bfloat16 if name is None else _format(name).stored
    x_BK, values_NJ = (torch.zeros(size, dtype=dtype) for size in ((tokens, 64), (64, 32)))
    scales = None if name is None else Scales(torch.zeros(tokens, 1), torch.zeros(64), torch.bfloat16)
    plan = Plan(2, 1, 5, 2, 1, clusters, name is not None)
    streamed_launch.multiplied(values_NJ, torch.zeros(0), x_BK, None, plan, scales=scales)
    begins = clusters and name is not None and tokens == 1
    assert launches == [(begins, begins)] * (1 if tokens == 1 else 3)
    assert "#if !EARLY" in streamed_launch.source()


def test_what_it_does_not_take_is_said() -> None:
    kernel = build_kernel("streamed")
    assert kernel.unsuitable_format(_format("int8"), 64, 96, torch.bfloat16) is None
    assert "does not multiply fp8_e5m2: pick reference" in str(
        kernel.unsuitable_format(_format("fp8_e5m2"), 64, 96, torch.bfloat16)
    )
    assert "K of 32, got N = 64, K = 80" in str(kernel.unsuitable(64, 80, torch.bfloat16))
    assert "needs a cuda device" in str(kernel.unavailable(torch.device("cpu"), torch.bfloat16))
