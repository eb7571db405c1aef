"""The kernel streamed on GPUs: right for every mask, length and size beside float64, and the same bits each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gpus import check_in_a_graph_and_on_another_stream, needs_a_gpu
from strategies import matrix

from blockshock.kernels import Packed, build_kernel, streamed, streamed_launch, streamed_layout
from blockshock.kernels.streamed_plan import plan_for
from blockshock.machine import cache_folder
from blockshock.matrices.named_masks import SIX_PATTERNS, build_mask
from blockshock.matrices.pieces import Piece
from blockshock.matrices.positions import mask_positions
from blockshock.matrices.weights import TensorWeights

pytestmark = [pytest.mark.gpu, needs_a_gpu]
CUDA = "cuda"


def _piece(N: int, K: int, dtype: torch.dtype, mask: str = "random", device: str = CUDA) -> Piece:
    """Small weights that are exact in every dtype, a tenth of them zeros, of both signs."""
    w_NK = matrix(N, K, dtype, N + K, device=device)
    w_NK[::2] *= -1
    source = TensorWeights(w_NK, matrix(1, N, dtype, 1, device=device)[0])
    return Piece(source, slice(0, K), build_mask(mask, source))


def _packed(piece: Piece, backward: bool = False) -> Packed:
    kernel = build_kernel("streamed")
    kernel.check(piece)
    return kernel.pack(piece, piece.source.bias, backward)


def _check(found_BN: torch.Tensor, x_BK: torch.Tensor, w_KN: torch.Tensor, bias: torch.Tensor | None) -> None:
    """A sum in float32, in any order, that is rounded once."""
    x64, w64, eps = x_BK.double(), w_KN.double(), torch.finfo(x_BK.dtype).eps
    added = 0 if bias is None else bias.double()
    exact_BN, terms_BN = x64 @ w64 + added, x64.abs() @ w64.abs() + (0 if bias is None else bias.double().abs())
    bound_BN = eps / 2 * exact_BN.abs() + len(w_KN) * 2.0**-24 * terms_BN + 1e-30
    assert bool(((found_BN.double() - exact_BN).abs() <= bound_BN).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [*SIX_PATTERNS, "random", "magnitude", "tile", "tile_random", "tile_magnitude"])
def test_every_length_and_mask(mask: str, dtype: torch.dtype) -> None:
    piece = _piece(288, 416, dtype, mask)
    packed, w_NK = _packed(piece, backward=True), piece.dense()
    for B in (*range(0, 66), 96, 127, 128, 129, 200, 300):
        x_BK, grad_y_BN = (matrix(B, width, dtype, B, device=CUDA) for width in (416, 288))
        _check(packed(x_BK), x_BK, w_NK.T, piece.source.bias)
        _check(packed.grad_input(grad_y_BN), grad_y_BN, w_NK, None)


@pytest.mark.parametrize(
    ("N", "K"),
    [(16, 32), (16, 4096), (4096, 32), (112, 96), (144, 160), (400, 1056), (1040, 8224), (5120, 13824), (20480, 512)],
)
def test_every_size(N: int, K: int) -> None:
    piece = _piece(N, K, torch.bfloat16)
    packed, w_NK = _packed(piece), piece.dense()
    for B in (1, 8, 9, 17, 40, 64, 128):
        x_BK = matrix(B, K, torch.bfloat16, B, device=CUDA)
        _check(packed(x_BK), x_BK, w_NK.T, piece.source.bias)


@pytest.mark.parametrize("tokens", [5, 64])
def test_every_number_of_splits_with_clusters_and_without(tokens: int) -> None:
    """The order in which splits are added is fixed: the same bits by both ways, and each time."""
    piece = _piece(400, 1184, torch.bfloat16)
    packed, w_NK, bias = _packed(piece), piece.dense(), piece.source.bias
    assert isinstance(packed, streamed.PackedStreamed)
    # No whole numbers: their sums are the same in every order.
    x_BK = torch.randn(tokens, 1184, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0)).to(torch.bfloat16)
    usual = plan_for(400, 1184, tokens, x_BK.device)
    for splits in (1, 2, 3, 8):
        plans = [replace(usual, splits=splits, clusters=way) for way in (usual.clusters, usual.clusters, False)]
        found = [streamed_launch.multiplied(packed.kept_NJ, packed.metadata, x_BK, bias, plan) for plan in plans]
        _check(found[0], x_BK, w_NK.T, bias)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_columns_beyond_the_last_step_are_not_read() -> None:
    """NaN behind each row of x, and behind W: zeros times it would be NaN too."""
    piece = _piece(48, 160, torch.bfloat16)
    packed, w_NK = _packed(piece), piece.dense()
    wide = torch.full((20, 256), float("nan"), device=CUDA, dtype=torch.bfloat16)
    x_BK = wide[:16, :160]
    x_BK.copy_(matrix(16, 160, torch.bfloat16, 1, device=CUDA))
    for B in (1, 7, 16):
        _check(packed(x_BK[:B]), x_BK[:B], w_NK.T, piece.source.bias)


@pytest.mark.parametrize("mask", ["1100", "1001", "tile", "random"])
def test_the_metadata_of_a_tile_that_repeats_stand_for_all(mask: str) -> None:
    for N, K in ((16, 32), (400, 1184), (2048, 4096)):
        piece = _piece(N, K, torch.bfloat16, mask)
        packed = _packed(piece)
        assert isinstance(packed, streamed.PackedStreamed)
        whole = streamed_layout.in_fragments(mask_positions(piece.kept).to(CUDA))
        assert (packed.metadata.shape == (1, 1, 32, 8)) == (mask != "random" or (N, K) == (16, 32))
        for B in (1, 16, 64, 128, 200):
            x_BK = torch.randn(B, K, device=CUDA).to(torch.bfloat16)
            alike = streamed_launch.multiplied(packed.kept_NJ, whole, x_BK, packed.bias)
            assert torch.equal(packed(x_BK), alike)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "odd offset": lambda x: torch.cat((x[:, :1], x), 1)[:, 1:],
    "row stride of 8": lambda x: torch.cat((x, x[:, :8]), 1)[:, :-8],
    "row stride of 4": lambda x: torch.cat((x, x[:, :4]), 1)[:, :-4],
    "transposed": lambda x: x.T.contiguous().T,
    "expanded": lambda x: x[:1].expand(len(x), -1),
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_x(layout: str) -> None:
    piece = _piece(96, 352, torch.bfloat16)
    packed, w_NK = _packed(piece), piece.dense()
    for B in (1, 2, 33):
        x_BK = LAYOUTS[layout](matrix(B, 352, torch.bfloat16, B, device=CUDA))
        _check(packed(x_BK), x_BK, w_NK.T, piece.source.bias)


@pytest.mark.parametrize("fault", [1, 4, 16, 64])
def test_wrong_metadata_are_seen(fault: int) -> None:
    """The test of the tests: one bit of one position."""
    piece = _piece(96, 352, torch.bfloat16)
    packed = _packed(piece)
    assert isinstance(packed, streamed.PackedStreamed)
    packed.kept_NJ.fill_(1)
    x_BK = torch.eye(352, device=CUDA, dtype=torch.bfloat16)[:64]  # of each column whether it is kept
    right = packed(x_BK)
    packed.metadata.view(-1)[17] ^= fault
    assert not torch.equal(packed(x_BK), right)


def test_new_values_reach_both_directions() -> None:
    piece = _piece(96, 352, torch.bfloat16, "tile_random")
    packed, w_NK = _packed(piece, backward=True), piece.dense()
    x_BK, grad_y_BN = (matrix(9, width, torch.bfloat16, 5, device=CUDA) for width in (352, 96))
    packed.write(packed.values * 2)
    _check(packed(x_BK), x_BK, 2 * w_NK.T, piece.source.bias)
    _check(packed.grad_input(grad_y_BN), grad_y_BN, 2 * w_NK, None)
    packed.recompress(w_NK * 4)
    _check(packed(x_BK), x_BK, 4 * w_NK.T, piece.source.bias)
    _check(packed.grad_input(grad_y_BN), grad_y_BN, 4 * w_NK, None)


def test_in_a_graph_on_another_stream_and_compiled() -> None:
    piece = _piece(528, 2080, torch.bfloat16)
    packed = _packed(piece)
    x_BK = matrix(24, 2080, torch.bfloat16, 2, device=CUDA)
    right = packed(x_BK)
    check_in_a_graph_and_on_another_stream(packed, x_BK)
    assert torch.equal(torch.compile(packed, backend="aot_eager", fullgraph=True)(x_BK), right)


def test_what_is_compiled_is_on_disk() -> None:
    _packed(_piece(16, 32, torch.bfloat16))(matrix(3, 32, torch.bfloat16, 2, device=CUDA))
    assert [*(cache_folder() / "kernels").glob("streamed_product-*.cubin")]
