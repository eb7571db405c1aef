"""Kept values move on a GPU as they do on a CPU, bit for bit, by the kernels or without them."""

from __future__ import annotations

import pytest
import torch
from gpus import needs_a_gpu
from strategies import ANY, LAYOUTS, equal, mask_rows, matrix, with_special

from blockshock.matrices import Kept, gather_kept, kept_on_gpu, product
from blockshock.matrices.compressed import expand
from blockshock.matrices.masks import DenseMask
from blockshock.matrices.positions import positions_of

pytestmark = [pytest.mark.gpu, needs_a_gpu]
SIZES = ((1, 4), (3, 8), (16, 12), (5, 16), (64, 272), (130, 1024))


def _positions(N: int, K: int) -> torch.Tensor:
    return positions_of(mask_rows(N, K, seed=N))


@pytest.mark.parametrize(
    ("dtype", "N", "K"),
    # For the largest each layout of a dtype is compiled anew, which takes ten seconds.
    [(dtype, N, K) for N, K in SIZES for dtype in (ANY[::3] if SIZES[-1] == (N, K) else ANY)],
)
def test_they_move_as_on_a_cpu_however_a_matrix_lies(dtype: torch.dtype, N: int, K: int) -> None:
    positions = _positions(N, K)
    for layout in LAYOUTS:
        w_NK = matrix(N, K, dtype, K, layout)
        w_NK = with_special(w_NK, 7) if dtype.is_floating_point else w_NK
        values_NJ = gather_kept(w_NK, positions)
        assert equal(gather_kept(w_NK.cuda(), positions.cuda()).cpu(), values_NJ), layout
        assert equal(
            gather_kept(matrix(N, K, dtype, K, layout, "cuda"), positions.cuda()).cpu(),
            gather_kept(matrix(N, K, dtype, K, layout), positions),
        ), layout
        assert equal(expand(values_NJ.cuda(), positions.cuda()).cpu(), expand(values_NJ, positions)), layout


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_they_are_cast_and_written_into_what_is_given(target: torch.dtype, N: int, K: int) -> None:
    positions, values_NJ = _positions(N, K), matrix(N, K // 2, torch.float32, 3)
    wanted = expand(values_NJ, positions).to(target)
    around = torch.full((N + 2, K + 8), 5, dtype=target, device="cuda")
    for out_NK in (torch.full((N, K), 5, dtype=target, device="cuda"), around[1 : N + 1, :K], around[1 : N + 1, 8:]):
        before = out_NK._version
        assert expand(values_NJ.cuda(), positions.cuda(), out_NK) is out_NK
        assert equal(out_NK.cpu(), wanted)
        assert out_NK._version > before
    assert bool((around[0] == 5).all())
    assert bool((around[-1] == 5).all())


def test_the_kernels_take_what_training_moves_and_leave_what_they_cannot() -> None:
    positions = _positions(64, 256).cuda()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        dense = torch.ones(64, 256, dtype=dtype, device="cuda")
        assert kept_on_gpu.fits(256, positions, dense)
        assert kept_on_gpu.fits(256, positions, dense[:, :128].contiguous(), dense)
        assert not kept_on_gpu.fits(256, positions, dense.T.contiguous().T)
        assert not kept_on_gpu.fits(256, positions, dense.flatten()[:-1].clone().as_strided((64, 256), (255, 1)))
    assert not kept_on_gpu.fits(256, positions, dense.double())
    assert not kept_on_gpu.fits(12, _positions(16, 12).cuda(), torch.ones(16, 12, device="cuda"))


def test_a_captured_gradient_is_that_of_what_is_there_when_it_is_replayed() -> None:
    N, K, B = 256, 512, 64
    kept = Kept(DenseMask(mask_rows(N, K, 1).cuda()), torch.device("cuda"))
    grad_y_BN, x_BK = (matrix(B, width, torch.bfloat16, 1, device="cuda") for width in (N, K))
    kept.gradient(grad_y_BN, x_BK, torch.float32, False)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured_NJ = kept.gradient(grad_y_BN, x_BK, torch.float32, False)
    x_BK.copy_(matrix(B, K, torch.bfloat16, 2, device="cuda"))
    graph.replay()
    dense_NK = product(grad_y_BN.T, x_BK, torch.float32).cpu()
    assert equal(captured_NJ.cpu(), gather_kept(dense_NK, positions_of(mask_rows(N, K, 1))))
