"""Zeros among kept values, for kernels whose library takes a kept zero for a dropped one: packed from W′ and mask."""

from __future__ import annotations

import pytest
import torch
from fake_cusparselt import fake_cusparselt
from gpus import needs_a_gpu

from blockshock.kernels import Kernel, build_kernel
from blockshock.matrices.pieces import Piece
from blockshock.matrices.weights import GeneratedWeights
from blockshock.pruning import PRUNERS, PrunedWeights

__all__ = ["fake_cusparselt"]
N = K = 128


class WithZeros(PRUNERS.get("tile_magnitude")):  # type: ignore[misc]
    """Makes a third of what it keeps zero, of either sign."""

    def prune(self, w_RK: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        pruned_RK, mask_RK = super().prune(w_RK, start)
        stream = torch.Generator(w_RK.device).manual_seed(start)
        zero = torch.rand(w_RK.shape, generator=stream, device=w_RK.device) < 1 / 3
        return torch.where(zero, torch.copysign(torch.zeros_like(w_RK), w_RK), pruned_RK), mask_RK


def piece(dtype: torch.dtype, device: str = "cpu") -> Piece:
    whole = Piece(GeneratedWeights(N, K, dtype, device))
    weights = PrunedWeights(whole, WithZeros(whole, None), "with_zeros")
    return Piece(weights, mask=weights.mask)


def check(kernel: Kernel, of: Piece) -> None:
    """Right both ways, and after new values came where the zeros were: their places are those of the mask."""
    packed, w_NK = kernel.pack(of, backward=True), of.dense()
    assert (w_NK[of.kept.dense()] == 0).float().mean() > 0.2
    x_BK = torch.randn(16, K, device=of.device, generator=torch.Generator(of.device).manual_seed(1)).to(of.dtype)
    kept_NJ = of.dense()[of.kept.dense()].view(N, K // 2)
    assert torch.equal(packed.values, kept_NJ)
    for scale in (1.0, 2.0):
        wanted = x_BK.double() @ w_NK.double().T, x_BK.double() @ w_NK.double()
        for found, exact in zip((packed(x_BK), packed.grad_input(x_BK)), wanted, strict=True):
            assert (found.double() - exact).norm() <= 0.01 * scale * exact.norm()
        new_NJ = torch.randn(N, K // 2, device=of.device, generator=torch.Generator(of.device).manual_seed(2))
        packed.write(new_NJ.to(of.dtype))
        w_NK = torch.zeros_like(w_NK)
        w_NK[of.kept.dense()] = new_NJ.to(of.dtype).flatten()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kept_zeros_are_packed_as_kept(fake_cusparselt: type[Kernel], dtype: torch.dtype) -> None:
    check(fake_cusparselt(search=False), piece(dtype))  # type: ignore[call-arg]


def test_without_the_marks_it_would_not_be_right(
    fake_cusparselt: type[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockshock.kernels.cusparselt.marked", lambda of: (of.dense(), False))
    with pytest.raises(AssertionError):
        check(fake_cusparselt(search=False), piece(torch.bfloat16))  # type: ignore[call-arg]


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["cusparselt:search=no", "cutlass", "reference", "auto:search=no"])
def test_kept_zeros_on_a_gpu(kernel: str, dtype: torch.dtype) -> None:
    of = piece(dtype, "cuda")
    chosen = build_kernel(kernel)
    if reason := chosen.unavailable(of.device, dtype):
        pytest.skip(reason)
    check(chosen.resolve(of, 16, True, lambda seconds: seconds), of)
