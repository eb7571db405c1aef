"""The kernel streamed in eight bits on GPUs: right beside float64 of what is stored, and the same bits each time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpus import check_in_a_graph_and_on_another_stream, check_on_the_heels, format_of_this_gpu, needs_a_gpu
from strategies import LAYOUTS, matrix

from blockshock.kernels import build_kernel, streamed_launch
from blockshock.kernels.formats import Order
from blockshock.kernels.streamed_bytes import PackedStreamedBytes
from blockshock.kernels.streamed_launch import Scales
from blockshock.kernels.streamed_plan import plan_for
from blockshock.matrices import Piece, TensorWeights, build_mask

pytestmark = [pytest.mark.gpu, needs_a_gpu]
FORMATS = ("int8", "fp8")
MASKS = ("1100", "0110", "1001", "random", "magnitude", "tile", "tile_random")


def _piece(N: int, K: int, mask: str = "random", device: str = "cuda") -> Piece:
    """Channels of very different sizes, one of zeros; and a bias."""
    stream = torch.Generator().manual_seed(N + K)
    w_NK = torch.randn(N, K, generator=stream) * torch.logspace(-2, 2, N)[:, None]
    w_NK[3] = 0
    bias = torch.randn(N, generator=stream).to(device, torch.bfloat16)
    source = TensorWeights(w_NK.to(device, torch.bfloat16), bias)
    return Piece(source, mask=build_mask(mask, source))


def _x(B: int, K: int, device: str = "cuda") -> torch.Tensor:
    """Tokens of very different sizes, one of zeros."""
    x_BK = torch.randn(B, K, generator=torch.Generator().manual_seed(B)) * torch.logspace(-2, 2, max(B, 1))[:B, None]
    x_BK[2:3] = 0
    return x_BK.to(device, torch.bfloat16)


def _packed(piece: Piece, name: str, biased: bool = True) -> PackedStreamedBytes:
    kernel, format = build_kernel("streamed"), format_of_this_gpu(name)
    kernel.check(piece)
    assert kernel.unsuitable_format(format, piece.N, piece.K, torch.bfloat16) is None
    packed = kernel.pack_quantised(piece, piece.source.bias if biased else None, format)
    assert isinstance(packed, PackedStreamedBytes)
    return packed


def _check(y_BN: torch.Tensor, x_BK: torch.Tensor, piece: Piece, packed: PackedStreamedBytes) -> None:
    """A sum as the format has it, two scales and a bias in float32, rounded once."""
    x64, w64 = packed.format.represented(x_BK), packed.format.represented(piece.dense())
    added = 0 if packed.bias is None else packed.bias.double()
    exact_BN, terms_BN = x64 @ w64.T + added, x64.abs() @ w64.abs().T + (0 if packed.bias is None else added.abs())
    lost = (packed.sums.bound(piece.K) if packed.format.name == "fp8" else 0) + 4 * 2.0**-24
    bound_BN = 2.0**-8 * exact_BN.abs() + lost * terms_BN + 1e-30
    assert bool(((y_BN.double() - exact_BN).abs() <= bound_BN).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_length_and_mask(mask: str, name: str) -> None:
    piece = _piece(288, 416, mask)
    packed, bare = _packed(piece, name), _packed(piece, name, biased=False)
    for B in (*range(0, 66), 96, 127, 128, 129, 200, 300):
        x_BK = _x(B, 416)
        _check(packed(x_BK), x_BK, piece, packed)
        _check(bare(x_BK), x_BK, piece, bare)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("N", "K"),
    [(16, 32), (16, 4096), (4096, 32), (112, 96), (144, 160), (400, 1056), (1040, 8224), (5120, 13824), (20480, 512)],
)
def test_every_size(N: int, K: int, name: str) -> None:
    piece = _piece(N, K)
    packed = _packed(piece, name)
    for B in (1, 8, 9, 17, 40, 64, 128):
        x_BK = _x(B, K)
        _check(packed(x_BK), x_BK, piece, packed)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [5, 64])
def test_every_number_of_splits_with_clusters_and_without(tokens: int, name: str) -> None:
    """The order in which splits are added is fixed: the same bits by both ways, and each time."""
    piece = _piece(400, 2208)
    packed, x_BK = _packed(piece, name), _x(tokens, 2208)
    stored = packed.stored(x_BK)
    scales = Scales(stored.scale, packed.scale_N, torch.bfloat16)
    usual, first = plan_for(400, 2208, tokens, x_BK.device, True), packed(x_BK)
    for splits in (1, 2, 3, 8):
        plans = [replace(usual, splits=splits, clusters=way) for way in (usual.clusters, usual.clusters, False)]
        found = [
            streamed_launch.multiplied(
                packed.kept_NJ, packed.metadata, stored.numbers, packed.bias, plan, scales=scales
            )
            for plan in plans
        ]
        _check(found[0], x_BK, piece, packed)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        assert name == "fp8" or torch.equal(found[0], first), "whole numbers are the same in every order"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_x(layout: str, name: str) -> None:
    packed = _packed(_piece(96, 352), name)
    for B in (1, 2, 33):
        x_BK = matrix(B, 352, torch.bfloat16, B, layout, "cuda")
        assert torch.equal(packed(x_BK), packed(x_BK.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_x_is_stored_in_one_launch_as_the_product_reads_it(name: str, layout: str) -> None:
    packed = _packed(_piece(96, 352), name)
    for B in (1, 7, 130):
        x_BK = matrix(B, 352, torch.bfloat16, B, layout, "cuda")
        found, (plain, scale_B1) = packed.stored(x_BK), packed.format.quantise(x_BK)
        wanted = Order.CROSSED.of(plain) if name == "fp8" else plain
        assert torch.equal(found.scale, scale_B1)
        assert torch.equal(found.numbers.view(torch.uint8), wanted.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fault", [1, 4, 16, 64])
def test_wrong_metadata_are_seen(fault: int, name: str) -> None:
    """The test of the tests: one bit of one position, of each byte of a lane."""
    packed = _packed(_piece(96, 256), name, biased=False)  # beside a bias the ones of small channels vanish
    packed.kept_NJ.view(torch.int8).fill_(0x38)  # in e4m3 a one
    x_BK = torch.eye(256, device="cuda", dtype=torch.bfloat16)  # of each column whether it is kept
    right = packed(x_BK)
    for byte in range(16):
        packed.metadata.view(-1)[16 * 17 + byte] ^= fault
        assert not torch.equal(packed(x_BK), right)
        packed.metadata.view(-1)[16 * 17 + byte] ^= fault
    assert torch.equal(packed(x_BK), right)


@pytest.mark.parametrize("name", FORMATS)
def test_scales_and_numbers_that_are_another_tokens_are_seen(name: str) -> None:
    piece = _piece(96, 352)
    packed, x_BK = _packed(piece, name), _x(20, 352)
    numbers, scale_B1 = packed.stored(x_BK)
    y_BN = packed.multiply(packed.stored(x_BK)._replace(scale=scale_B1.roll(1, 0)), torch.bfloat16)
    with pytest.raises(AssertionError):
        _check(y_BN, x_BK, piece, packed)
    rolled = numbers.view(torch.uint8).roll(1, 0).view(numbers.dtype)  # which torch has of bytes alone
    y_BN = packed.multiply(packed.stored(x_BK)._replace(numbers=rolled), torch.bfloat16)
    with pytest.raises(AssertionError):
        _check(y_BN, x_BK, piece, packed)


@pytest.mark.parametrize("name", FORMATS)
def test_in_a_graph_on_another_stream_and_compiled(name: str) -> None:
    packed, x_BK = _packed(_piece(528, 2080), name), _x(24, 2080)
    right = packed(x_BK)
    check_in_a_graph_and_on_another_stream(packed, x_BK)
    with torch.inference_mode():
        assert torch.equal(torch.compile(packed, backend="aot_eager", fullgraph=True)(x_BK), right)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 128])
@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (256, 16384)])
def test_it_reads_no_x_before_that_is_quantised(N: int, K: int, tokens: int, name: str) -> None:
    """Many calls on the heels of each other, plain and captured: the product begins while one token is quantised."""
    packed = _packed(_piece(N, K), name)
    inputs = [_x(128, K).roll(turn, 0)[:tokens] for turn in range(8)]
    check_on_the_heels(packed, inputs)
