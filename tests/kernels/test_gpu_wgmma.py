"""The kernel wgmma on GPUs: right beside float64 of what is stored, and the same bits each time."""

from __future__ import annotations

import itertools

import pytest
import torch
from gpus import check_in_a_graph_and_on_another_stream, check_on_the_heels, format_of_this_gpu, needs_a_gpu
from strategies import LAYOUTS, matrix

from blockshock.kernels import Stored, build_kernel
from blockshock.kernels.formats import Order
from blockshock.kernels.wgmma import PackedWgmma
from blockshock.matrices import Piece, TensorWeights, build_mask

pytestmark = [pytest.mark.gpu, needs_a_gpu]
FORMATS = ("int8", "fp8")
MASKS = ("1100", "0110", "1001", "random", "magnitude", "tile", "tile_random")
NEXT_PAIR = {4: 8, 8: 9, 9: 12, 12: 13, 13: 14, 14: 4}
"""Of the places of two kept of four, as metadata have them, others that these may be."""


def _piece(N: int, K: int, mask: str = "random", dtype: torch.dtype = torch.bfloat16) -> Piece:
    """Channels of very different sizes, one of zeros; and a bias."""
    stream = torch.Generator().manual_seed(N + K)
    w_NK = torch.randn(N, K, generator=stream) * torch.logspace(-2, 2, N)[:, None]
    w_NK[3] = 0
    bias = torch.randn(N, generator=stream).to("cuda", dtype)
    source = TensorWeights(w_NK.to("cuda", dtype), bias)
    return Piece(source, mask=build_mask(mask, source))


def _x(B: int, K: int) -> torch.Tensor:
    """Tokens of very different sizes, one of zeros."""
    x_BK = torch.randn(B, K, generator=torch.Generator().manual_seed(B)) * torch.logspace(-2, 2, max(B, 1))[:B, None]
    x_BK[2:3] = 0
    return x_BK.to("cuda", torch.bfloat16)


def _packed(piece: Piece, name: str, biased: bool = True) -> PackedWgmma:
    kernel, format = build_kernel("wgmma"), format_of_this_gpu(name)
    if reason := kernel.unavailable(piece.device, piece.dtype):
        pytest.skip(reason)
    kernel.check(piece, format)
    packed = kernel.pack_quantised(piece, piece.source.bias if biased else None, format)
    assert isinstance(packed, PackedWgmma)
    return packed


def _check(y_BN: torch.Tensor, x_BK: torch.Tensor, piece: Piece, packed: PackedWgmma) -> None:
    """A sum as the format has it, two scales and a bias in float32, rounded once."""
    x64, w64 = packed.format.represented(x_BK), packed.format.represented(piece.dense())
    added = 0 if packed.bias is None else packed.bias.double()
    exact_BN, terms_BN = x64 @ w64.T + added, x64.abs() @ w64.abs().T + (0 if packed.bias is None else added.abs())
    lost = (packed.sums.bound(piece.K) if packed.format.name == "fp8" else 0) + 4 * 2.0**-24
    held = torch.finfo(y_BN.dtype)  # what is below its numbers is as far apart as the least of them
    bound_BN = held.eps / 2 * (exact_BN.abs() + held.tiny) + lost * terms_BN + 1e-30
    assert bool(((y_BN.double() - exact_BN).abs() <= bound_BN).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_length_and_mask(mask: str, name: str) -> None:
    piece = _piece(296, 424, mask)
    packed, bare = _packed(piece, name), _packed(piece, name, biased=False)
    for B in (*range(0, 20), 31, 64, 127, 128, 129, 255, 256, 257, 300, 511, 513, 1000):
        x_BK = _x(B, 424)
        _check(packed(x_BK), x_BK, piece, packed)
        _check(bare(x_BK), x_BK, piece, bare)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("N", "K"),
    [(8, 8), (8, 4096), (4096, 8), (120, 96), (136, 264), (264, 1056), (1048, 8232), (5120, 13824), (20480, 512)],
)
def test_every_size(N: int, K: int, name: str) -> None:
    piece = _piece(N, K)
    packed = _packed(piece, name)
    for B in (1, 9, 250, 1030):
        x_BK = _x(B, K)
        _check(packed(x_BK), x_BK, piece, packed)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("N", "K", "B"), [(2048, 2048, 2304), (8192, 2048, 2000), (2056, 4104, 4100)])
def test_many_tiles_for_each_cluster_and_the_same_bits_each_time(N: int, K: int, B: int, name: str) -> None:
    """More tiles than clusters, side by side in parts of two sizes, and stages that go on from tile to tile."""
    piece = _piece(N, K)
    packed, x_BK = _packed(piece, name), _x(B, K)
    first = packed(x_BK)
    _check(first, x_BK, piece, packed)
    stored = packed.stored(x_BK)
    filled = stored.numbers.view(torch.uint8)[-1, :, B % 256 :] if B % 256 else None
    for byte in (0x7F, 0xFF, 0x00):  # in e4m3 no numbers
        if filled is not None:
            filled.fill_(byte)  # what rows are filled up with is never seen
        assert torch.equal(packed.multiply(stored, torch.bfloat16), first)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_x(layout: str, name: str) -> None:
    packed = _packed(_piece(96, 352), name)
    for B in (1, 33, 300):
        x_BK = matrix(B, 352, torch.bfloat16, B, layout, "cuda")
        assert torch.equal(packed(x_BK), packed(x_BK.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_x_is_stored_in_one_launch_as_the_product_reads_it(name: str, layout: str) -> None:
    packed = _packed(_piece(96, 352), name)
    for B in (1, 7, 256, 300):
        x_BK = matrix(B, 352, torch.bfloat16, B, layout, "cuda")
        found, (plain, scale_B1) = packed.stored(x_BK), packed.format.quantise(x_BK)
        assert torch.equal(found.scale, scale_B1)
        rows = [
            one.view(torch.uint8).transpose(1, 2).flatten(0, 1)[:B] for one in (found.numbers, Order.TILES.of(plain))
        ]
        assert torch.equal(*rows)


def test_int8_in_float16() -> None:
    piece = _piece(264, 352, dtype=torch.float16)
    packed, x_BK = _packed(piece, "int8"), (_x(300, 352) / 100).half()
    _check(packed(x_BK), x_BK, piece, packed)


@pytest.mark.parametrize("name", FORMATS)
def test_products_with_what_is_not_finite_are_not(name: str) -> None:
    piece = _piece(96, 352)
    packed, x_BK = _packed(piece, name), _x(300, 352)
    right = packed(x_BK)
    x_BK[1, 5], x_BK[270, 7] = float("nan"), float("inf")
    found, others = packed(x_BK), torch.ones(300, dtype=torch.bool, device="cuda")
    others[[1, 270]] = False
    assert torch.equal(found[others], right[others])
    assert not torch.isfinite(found[~others]).any()


@pytest.mark.parametrize("name", FORMATS)
def test_wrong_metadata_are_seen(name: str) -> None:
    """The test of the tests: another pair of columns in a group, of some bytes of each warp of both warpgroups."""
    packed = _packed(_piece(128, 256), name, biased=False)  # beside a bias the ones of small channels vanish
    packed.tiles[..., :8192].fill_(0x38)  # in e4m3 a one
    x_BK = torch.eye(256, device="cuda", dtype=torch.bfloat16)  # of each column whether it is kept
    right = packed(x_BK)
    for step, byte, shift in itertools.product(range(2), range(8192, 10240, 131), (0, 4)):
        held = int(packed.tiles[0, step, byte])
        pair = held >> shift & 15
        packed.tiles[0, step, byte] = held ^ (pair ^ NEXT_PAIR[pair]) << shift
        assert not torch.equal(packed(x_BK), right)
        packed.tiles[0, step, byte] = held
    assert torch.equal(packed(x_BK), right)


@pytest.mark.parametrize("name", FORMATS)
def test_scales_and_numbers_that_are_another_tokens_are_seen(name: str) -> None:
    piece = _piece(96, 352)
    packed, x_BK = _packed(piece, name), _x(20, 352)
    numbers, scale_B1 = packed.stored(x_BK)
    rolled = Order.TILES.of(packed.format.quantise(x_BK).numbers.view(torch.uint8).roll(1, 0).view(numbers.dtype))
    for wrong in (Stored(numbers, scale_B1.roll(1, 0)), Stored(rolled, scale_B1)):
        with pytest.raises(AssertionError):
            _check(packed.multiply(wrong, torch.bfloat16), x_BK, piece, packed)


@pytest.mark.parametrize("name", FORMATS)
def test_in_a_graph_on_another_stream_and_compiled(name: str) -> None:
    packed, x_BK = _packed(_piece(528, 2080), name), _x(600, 2080)
    right = packed(x_BK)
    check_in_a_graph_and_on_another_stream(packed, x_BK)
    with torch.inference_mode():
        assert torch.equal(torch.compile(packed, backend="aot_eager", fullgraph=True)(x_BK), right)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("N", "K"), [(256, 2048), (4096, 1024)])
def test_it_reads_no_x_before_that_is_quantised(N: int, K: int, name: str) -> None:
    """Many calls on the heels of each other, plain and captured: the product begins while x is still quantised."""
    packed = _packed(_piece(N, K), name)
    inputs = [_x(1000, K).roll(turn, 0) for turn in range(8)]
    check_on_the_heels(packed, inputs)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bare_product(name: str) -> None:
    packed = _packed(_piece(264, 352), name, biased=False)
    x = packed.format.quantise(_x(300, 352))
    packed.scale_N.fill_(1)
    by_ones = Stored(Order.TILES.of(x.numbers), torch.ones_like(x.scale))
    assert torch.equal(packed.product(x.numbers), packed.multiply(by_ones, torch.bfloat16))
