"""The kernel wgmma, as far as a CPU can see it: how tensor cores read W and x, its launch, and what it refuses."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blockshock.sparse import Sparse24
from strategies import LAYOUTS, matrix
from torch._subclasses.fake_tensor import FakeTensorMode

from blockshock.errors import InputError
from blockshock.kernels import Format, Stored, build_format, build_kernel, wgmma
from blockshock.kernels.auto import Auto
from blockshock.kernels.formats import Order, one_pass
from blockshock.kernels.wgmma import PackedWgmma, side_by_side
from blockshock.kernels.wgmma_layout import in_tiles
from blockshock.matrices import GeneratedWeights, Piece, build_mask, mask_positions
from blockshock.methods import Layer, axis_of
from blockshock.methods.picked import KernelAxis

FORMATS = ("int8", "fp8")
CUDA = torch.device("cuda", 0)
HOPPER = SimpleNamespace(multi_processor_count=133)


def _format(name: str) -> Format:
    format = build_format(name)
    assert format is not None
    return format


def _packed(name: str, N: int, K: int, mask: str = "random", biased: bool = True) -> tuple[PackedWgmma, Piece]:
    source = GeneratedWeights(N, K, torch.bfloat16, "cpu", with_bias=biased)
    piece = Piece(source, mask=build_mask(mask, source))
    packed = build_kernel("wgmma").pack_quantised(piece, source.bias, _format(name))
    assert isinstance(packed, PackedWgmma)
    return packed, piece


def _by_descriptor(memory: torch.Tensor, start: int, chunks: int, rows: int, size: int) -> torch.Tensor:
    """Bytes (rows, size) of an operand whose rows have so many chunks of 16 bytes, swizzled by their addresses."""
    row, byte = torch.arange(rows)[:, None], torch.arange(size)
    address = start + 16 * chunks * row + byte
    return memory[address ^ (address >> 7 & chunks - 1) << 4]


def _sparse(values: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """W (64, 64) of kept values (64, 32) and of the metadata of 128 threads, as wgmma.mma_async.sp has them."""
    thread, dense = torch.arange(128), torch.zeros(64, 64, dtype=torch.float64)
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (thread & 1)
    for group in range(8):
        first = 32 * (thread >> 1 & 1) + 4 * group
        low, high = words >> 4 * group & 3, words >> 4 * group + 2 & 3
        assert (low < high).all(), "other metadata mean nothing"
        for kept, place in enumerate((low, high)):
            dense[row, first + place] = values[row, first // 2 + kept]
    return dense


def _product(tiles: torch.Tensor, x_tiles: torch.Tensor) -> torch.Tensor:
    """Sums (256 tokens a tile, 128 features a tile), float64, as tensor cores make them of tiles in shared memory."""
    dtype, x_tiles = x_tiles.dtype, x_tiles.view(torch.uint8)
    sums = torch.zeros(len(x_tiles), 256, len(tiles), 2, 64, dtype=torch.float64)
    sizes = (len(x_tiles), len(tiles), tiles.shape[1])
    for token_tile, feature_tile, step in itertools.product(*map(range, sizes)):
        x, w = x_tiles[token_tile, step].flatten(), tiles[feature_tile, step]
        words = w[8192:].view(torch.int32).view(2, 128, 2)
        for warpgroup in range(2):
            for half in range(2):
                values = _by_descriptor(w, 4096 * warpgroup + 32 * half, 4, 64, 32)
                w_NK = _sparse(values.view(dtype).double(), words[warpgroup, :, half])
                x_BK = _by_descriptor(x, 64 * half, 8, 256, 64).view(dtype).double()
                sums[token_tile, :, feature_tile, warpgroup] += x_BK @ w_NK.T
    return sums.flatten(0, 1).flatten(1)


@pytest.mark.parametrize(("N", "K", "B"), [(8, 8, 1), (264, 328, 260), (16, 512, 9)])
@pytest.mark.parametrize("name", FORMATS)
def test_the_tensor_cores_see_w_and_x(name: str, N: int, K: int, B: int) -> None:
    packed, piece = _packed(name, N, K)
    x_BK = matrix(B, K, torch.bfloat16, B)
    stored = packed.stored(x_BK)
    sums_BN = _product(packed.tiles, stored.numbers)
    found_BN = sums_BN[:B, :N] * stored.scale.double() * packed.scale_N.double()
    w_NK, x64_BK = _format(name).represented(piece.dense()), _format(name).represented(x_BK)
    torch.testing.assert_close(found_BN, x64_BK @ w_NK.T, rtol=1e-12, atol=1e-13)
    assert not sums_BN[:, N:].any(), "what W is filled up with"


def test_a_wrong_place_of_either_is_seen() -> None:
    """The test of the test."""
    packed, _ = _packed("int8", 8, 64)
    numbers = packed.stored(torch.eye(64, dtype=torch.bfloat16)).numbers
    right = _product(packed.tiles, numbers)
    for changed in (packed.tiles.view(-1)[:128], packed.tiles.view(-1)[8192:][:32], numbers.view(-1)[128:256]):
        kept = changed.clone()
        changed.copy_(changed.view(-1, 16).roll(1, 0).flatten())
        assert not torch.equal(_product(packed.tiles, numbers), right)
        changed.copy_(kept)


@pytest.mark.parametrize("mask", ["1100", "1001", "tile_random"])
@pytest.mark.parametrize("name", FORMATS)
def test_it_holds_what_it_says(name: str, mask: str) -> None:
    packed, _ = _packed(name, 264, 328, mask)
    kernel = build_kernel("wgmma")
    held = sum(buffer.nbytes for buffer in packed.buffers()) - 2 * 264
    assert held == packed.operand.size == kernel.quantised_bytes(264, 328, _format(name))[0]
    assert (packed.operand.values, packed.operand.unit, packed.shape) == (264 * 164, f"{name} 2:4", (264, 328))
    assert (packed.roundings, packed.fuses) == (1, False)
    full, building = kernel.quantised_bytes(512, 1024, _format(name))
    assert full == 512 * 1024 * 5 // 8 + 4 * 512
    assert building == full + 512 * 1024 * 9 // 8


def test_rows_are_packed_block_by_block_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, piece = _packed("int8", 520, 64)
    monkeypatch.setattr(wgmma, "row_blocks", lambda rows, _, multiple: [(0, multiple), (multiple, rows)])
    again, _ = _packed("int8", 520, 64)
    assert torch.equal(packed.tiles, again.tiles)
    whole = in_tiles(torch.zeros(520, 32, dtype=torch.int8), mask_positions(piece.kept))
    assert whole.shape == packed.tiles.shape
    assert whole.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_x_is_stored_in_tiles_however_it_lies(name: str, layout: str) -> None:
    packed, _ = _packed(name, 8, 304)
    x_BK = matrix(300, 304, torch.bfloat16, 3, layout)
    numbers, scale_B1 = packed.stored(x_BK)
    plain, wanted_B1 = _format(name).quantise(x_BK)
    assert torch.equal(scale_B1, wanted_B1)
    assert numbers.shape == Order.TILES.shape(300, 304) == (2, 4, 256, 128)
    tile, row, step, column = (torch.tensor(one) for one in ((0, 1, 1), (5, 0, 43), (0, 2, 1), (77, 47, 127)))
    chunk = column // 16 ^ row % 8
    found = numbers[tile, step, row, 16 * chunk + column % 16].float()
    assert torch.equal(found, plain[256 * tile + row, 128 * step + column].float())
    assert not numbers[:, 3].view(torch.uint8).any(), "columns that are not there"


def test_orders_of_rows_are_what_they_were() -> None:
    q_RK = torch.arange(64, dtype=torch.int8).view(2, 32)
    assert Order.ROWS.of(q_RK) is q_RK
    assert Order.ROWS.shape(2, 32) == Order.CROSSED.shape(2, 32) == (2, 32)


@pytest.mark.parametrize("name", FORMATS)
def test_a_gpu_is_asked_for_the_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, launches = _packed(name, 8, 304)[0], []

    def kernel(*key: Any) -> Any:
        return lambda grid, block, args: launches.append((key, grid, args))

    monkeypatch.setattr(one_pass, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(one_pass, "kernel_of_fours", kernel)
    monkeypatch.setattr(one_pass, "quantises", lambda rows_RK, stored: True)
    x = packed.stored(torch.zeros(300, 304, dtype=torch.bfloat16))
    ((key, grid, args),) = launches
    assert key[3:5] == (("FP8", int(name == "fp8")), ("ORDER", 2))
    assert (grid, x.numbers.shape, args[3:6]) == ((300, 1, 1), (2, 4, 256, 128), [300, 304, 76])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_its_launch(name: str, biased: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[Any, ...]] = []
    monkeypatch.setattr(wgmma, "on_gpu", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: HOPPER)
    monkeypatch.setattr(wgmma, "_kernel", lambda *key: lambda **given: launches.append((key, given)))
    packed, _ = _packed(name, 264, 328, biased=biased)
    for B, clusters in ((1, 2), (300, 4), (256 * 34, 66)):
        x_BK = torch.zeros(B, 328, dtype=dtype)
        y_BN = packed(x_BK)
        (key, given), args = launches.pop(), []
        args = given["args"]
        assert (y_BN.shape, y_BN.dtype, key[:2]) == ((B, 264), dtype, (dtype, name == "fp8"))
        assert (given["grid"], given["early"]) == ((2 * clusters, 1, 1), True)
        assert args[0] is packed.tiles
        assert args[2] is (packed.bias if biased else y_BN)
        assert args[3] is y_BN
        assert args[5] is packed.scale_N
        assert args[6:] == [264, B, 4, side_by_side(-(-B // 256)), int(biased)]
    assert packed(x_BK[:0]).shape == (0, 264)
    assert not launches


def test_tiles_of_tokens_stand_side_by_side_as_evenly_as_can_be() -> None:
    found = [side_by_side(tiles) for tiles in (1, 4, 8, 9, 16, 17, 32)]
    assert found == [1, 4, 8, 5, 8, 6, 8]


def test_what_it_is_compiled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(wgmma, "compiled", lambda *args, **named: given.append((args, named)))
    wgmma._kernel.__wrapped__(torch.float16, True, CUDA)
    (((source, name, definitions, shared_bytes), named),) = given
    assert (name, named, shared_bytes) == ("wgmma_product", {"of_its_own": True}, definitions["SHARED_BYTES"])
    assert all(macro in source for macro in definitions)
    assert "    wait_for_kernel_before();" in source, "it is launched early"
    assert definitions["EARLY"] == definitions["EIGHT_BITS"] == definitions["CLUSTERS"] == 1, "and has that"
    assert (definitions["BF16"], definitions["FP8"]) == (0, 1)
    assert shared_bytes <= 227 << 10, "of a block on Hopper"


@pytest.mark.parametrize("name", FORMATS)
def test_compiled_code_knows_its_shape(name: str) -> None:
    packed, _ = _packed(name, 264, 328)
    operands = packed.tiles, *packed.stored(torch.ones(300, 328).bfloat16()), packed.scale_N, packed.bias
    with FakeTensorMode(allow_non_fake_inputs=True):
        y_BN = torch.ops.blockshock.wgmma(*operands, torch.bfloat16)
    assert (y_BN.shape, y_BN.dtype) == ((300, 264), torch.bfloat16)


def test_it_is_traced_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = _packed("int8", 264, 328)
    x_BK, stored = torch.randn(300, 328).bfloat16(), []
    monkeypatch.setattr(wgmma, "multiplied", lambda *given: stored.append(given) or torch.zeros(300, 264).bfloat16())
    with torch.inference_mode():
        torch.compile(packed, backend="aot_eager", fullgraph=True)(x_BK)
    ((tiles, numbers, of_tokens, of_features, bias, dtype),) = stored
    wanted = packed.stored(x_BK)
    assert torch.equal(numbers, wanted.numbers)
    assert torch.equal(of_tokens, wanted.scale)
    assert (tiles.shape, of_features.shape, dtype) == (packed.tiles.shape, (264,), torch.bfloat16)
    assert bias is not None


def test_the_bare_product_is_laid_out_and_scaled_by_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = _packed("int8", 264, 328)
    given: list[Any] = []
    monkeypatch.setattr(wgmma, "multiplied", lambda *operands: given.append(operands))
    for B in (9, 300):
        x: Stored = _format("int8").quantise(torch.randn(B, 328))
        packed.product(x.numbers)
        _, numbers, of_tokens, of_features, bias, _ = given.pop()
        assert torch.equal(numbers, Order.TILES.of(x.numbers))
        assert (len(of_tokens), len(of_features), bias) == (B, 264, None)
        assert bool((of_tokens == 1).all() and (of_features == 1).all())


def test_what_it_does_not_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = build_kernel("wgmma")
    assert kernel.unsuitable_format(_format("int8"), 64, 96, torch.bfloat16) is None
    assert "does not multiply fp8_e5m2: pick reference" in str(
        kernel.unsuitable_format(_format("fp8_e5m2"), 64, 96, torch.bfloat16)
    )
    assert kernel.unsuitable(64, 80, torch.bfloat16) is None
    assert "multiples of 8, got N = 64, K = 84" in str(kernel.unsuitable(64, 84, torch.bfloat16))
    assert "needs a cuda device" in str(kernel.unavailable(torch.device("cpu"), torch.bfloat16))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, able in (((9, 0), True), ((8, 9), False), ((10, 0), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (kernel.unavailable(CUDA, torch.bfloat16) is None) == able
    assert "this GPU has 12.0: use streamed" in str(kernel.unavailable(CUDA, torch.bfloat16))
    assert "not torch.float32" in str(kernel.unavailable(CUDA, torch.float32))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without it" in str(kernel.unavailable(CUDA, torch.bfloat16))


@pytest.mark.parametrize("kernel", ["wgmma", "streamed"])
def test_a_y_that_it_does_not_give_is_refused(kernel: str) -> None:
    """Of x in another dtype than W: bits of 16 each would be read as if they were 32."""
    source = GeneratedWeights(32, 64, torch.bfloat16, "cpu")
    packed = build_kernel(kernel).pack_quantised(Piece(source, mask=build_mask("1100", source)), None, _format("int8"))
    with pytest.raises(InputError, match=r"given in torch.bfloat16, torch.float16, not in torch.float32: cast x"):
        packed(torch.ones(3, 64))


def test_without_a_format_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, axis = build_kernel("wgmma"), axis_of("kernel")
    monkeypatch.setattr(type(kernel), "unavailable", lambda *_: None)
    source = GeneratedWeights(32, 64, torch.bfloat16, "cpu")
    piece, says = (
        Piece(source, mask=build_mask("1100", source)),
        "kernel wgmma multiplies in formats int8 and fp8 alone",
    )
    with pytest.raises(InputError, match=says):
        kernel.check(piece)
    kernel.check(piece, _format("fp8"))
    with pytest.raises(InputError, match="does not multiply fp8_e5m2"):
        kernel.check(piece, _format("fp8_e5m2"))
    assert axis.unsuitable("wgmma", Layer(source, {"kernel": "wgmma"}, 16)) == says
    assert axis.unsuitable("wgmma", Layer(source, {"kernel": "wgmma", "format": "int8"}, 16)) is None
    with pytest.raises(InputError, match=says):
        Sparse24(piece.dense(), kernel="wgmma")
    with pytest.raises(InputError, match="multiples of 8, got N = 33"):
        Sparse24(torch.ones(33, 64), dtype=torch.int8, kernel="wgmma")
    assert Sparse24(piece.dense(), dtype=torch.int8, kernel="wgmma").shape == (32, 64)


def test_auto_measures_it_in_formats_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, source = build_kernel("auto"), GeneratedWeights(32, 64, torch.bfloat16, "cpu")
    assert isinstance(auto, Auto)
    monkeypatch.setattr(type(build_kernel("wgmma")), "unavailable", lambda *_: None)
    piece, measured = Piece(source, mask=build_mask("random", source)), []
    monkeypatch.setattr(Auto, "_ranked", lambda self, candidates, *_: measured.append(candidates) or [auto])
    auto.resolve_format(piece, 16, _format("int8"), lambda seconds: seconds)
    auto.resolve(piece, 16, False, lambda seconds: seconds)
    in_format, plain = measured
    assert "wgmma" in in_format
    assert "wgmma" not in plain


def test_a_session_picks_it_where_formats_are_asked_for() -> None:
    axis = KernelAxis("kernel")
    for formats, there in ((None, False), ("int8", True)):
        picked = axis.asked(None, "cuda", {"--no-search": None, "--formats": formats})
        assert ("wgmma" in picked) == there
        assert "streamed" in picked
    assert "wgmma" not in axis.covered("cuda")
    assert axis.asked(("wgmma",), "cuda", {"--no-search": None, "--formats": None}) == ("wgmma",)
