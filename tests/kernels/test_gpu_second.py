"""Kernels of ours on a GPU that is not the current one: the same bits as on the first."""

from __future__ import annotations

import pytest
import torch
from gpus import format_of_this_gpu, needs_two_gpus
from strategies import matrix

from blockshock.kernels import Packed, build_block_kernel, build_kernel
from blockshock.matrices import Piece, TensorWeights, build_mask
from blockshock.pruning import block_mask

pytestmark = [pytest.mark.gpu2, needs_two_gpus]
N, K, B = 96, 352, 9


def _source(device: str, K: int = K) -> TensorWeights:
    return TensorWeights(matrix(N, K, torch.bfloat16, 0, device=device))


def _packed(kernel: str, format: str, device: str) -> Packed:
    source = _source(device)
    piece = Piece(source, mask=build_mask("random", source))
    if format == "plain":
        return build_kernel(kernel).pack(piece)
    built = build_kernel(kernel)
    if reason := built.unavailable(piece.device, piece.dtype):
        pytest.skip(reason)
    return built.pack_quantised(piece, None, format_of_this_gpu(format))


@pytest.mark.parametrize(
    ("kernel", "format"),
    [*(("streamed", name) for name in ("plain", "int8", "fp8")), *(("wgmma", name) for name in ("int8", "fp8"))],
)
def test_a_product_on_the_second_gpu_while_the_first_is_current(kernel: str, format: str) -> None:
    found = {}
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        x_BK = matrix(B, K, torch.bfloat16, 1, device=device)
        found[device] = _packed(kernel, format, device)(x_BK)
        assert found[device].device == x_BK.device
        assert found[device].abs().sum() > 0
    assert torch.equal(found["cuda:0"].cpu(), found["cuda:1"].cpu())


def test_blocks_on_the_second_gpu() -> None:
    found = []
    for device in ("cuda:1", "cuda:0"):
        source = _source(device, 384)
        piece = Piece(source, mask=block_mask("blocks:size=32:level=0.5", source))
        found.append(
            build_block_kernel("bsr:search=no").pack(piece, 32)(matrix(B, 384, torch.bfloat16, 1, device=device))
        )
    torch.testing.assert_close(found[0].cpu(), found[1].cpu())
    assert found[0].abs().sum() > 0
