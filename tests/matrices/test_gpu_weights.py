"""What is drawn and chosen on a GPU: the bits that a seed has always meant there, and the masks that a CPU finds."""

from __future__ import annotations

import pytest
import torch
from gpus import needs_a_gpu
from strategies import mask_rows

from blockshock.matrices import GeneratedWeights, KeptMask, generator, nudge_zeros, two_largest
from blockshock.matrices.positions import positions_of

pytestmark = [pytest.mark.gpu, needs_a_gpu]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [12, 1000, 8192])
def test_a_generated_weight_is_the_draw_of_its_block_times_its_deviation(dtype: torch.dtype, K: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    draws = [
        torch.randn(rows, K, device=device, generator=generator(device, 5, 0, i)) for i, rows in ((0, 256), (1, 44))
    ]
    wanted = nudge_zeros((torch.cat(draws) * K**-0.5).to(dtype))
    assert torch.equal(GeneratedWeights(300, K, dtype, device, 5).rows(0, 300), wanted)


@pytest.mark.parametrize("K", [4, 8, 12, 1024])
def test_positions_and_masks_are_those_of_a_cpu(K: int) -> None:
    mask_NK = mask_rows(37, K, seed=K)
    positions = positions_of(mask_NK.cuda())
    assert torch.equal(positions.cpu(), positions_of(mask_NK))
    assert torch.equal(KeptMask(positions, K).dense().cpu(), mask_NK)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_two_largest_are_those_of_a_cpu(dtype: torch.dtype) -> None:
    scores_RK = (torch.randn(65, 512, generator=torch.Generator().manual_seed(1)) * 3).round().to(dtype).abs()  # ties
    for dim in (0, 1):
        scores = scores_RK[:64]
        assert torch.equal(two_largest(scores.cuda(), dim).cpu(), two_largest(scores, dim))
