"""On two GPUs: the fastest pair of kernel and combine is right, agreed upon, and measured and packed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpus import needs_two_gpus

from blockshock.kernels import AlgorithmCache, auto
from blockshock.machine import memory
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer, Shape, combined
from blockshock.methods.pieces import PieceMethod
from blockshock.ranks import Ranks

pytestmark = [pytest.mark.gpu2, needs_two_gpus]

PICKS = {"block_shock": {"mask": "1100"}, "pruned_tp_row": {"pruner": "1100"}}
B = 16


@dataclass(frozen=True)
class Built:
    """One build on one rank: its pair, how many packings and how many measurements it took, and whether y is right."""

    pair: tuple[str, str]
    packed: int
    measured: int
    right: bool
    fits: bool


def _build(layer: Layer, method: str) -> Built:
    counts: dict[str, int] = {"_packed": 0, "_measure": 0}
    device = layer.source.device

    def counting(kind: type, name: str, patch: pytest.MonkeyPatch) -> None:
        called = getattr(kind, name)

        def call(*given: Any) -> Any:
            counts[name] += 1
            return called(*given)

        patch.setattr(kind, name, call)

    with pytest.MonkeyPatch.context() as patch:
        counting(PieceMethod, "_packed", patch)
        counting(combined.Combined, "_measure", patch)
        with memory.peak_bytes(device) as peak:
            built = METHODS.get(method)(layer, dist.group.WORLD)
    x_BK = torch.randn(B, layer.source.K, device=device, generator=torch.Generator(device).manual_seed(1)).bfloat16()
    y_BN = built(x_BK)
    others = [torch.empty_like(y_BN) for _ in range(2)]
    dist.all_gather(others, y_BN)
    right_NK = METHODS.get(method).multiplied(layer, 2).rows(0, layer.source.N).double()
    exact_BN = x_BK.double() @ right_NK.T
    right = torch.equal(*others) and bool((y_BN.double() - exact_BN).norm() < 4e-3 * exact_BN.norm())
    shape = Shape(layer.source.N, layer.source.K, 2, 2, picks=dict(layer.picks), mask=layer.kept)
    fits = peak[0] <= METHODS.get(method).estimate(shape).building + (768 << 20)
    return Built((built.resolved["kernel"], built._combine), counts["_packed"], counts["_measure"], right, fits)


def _builds(method: str, folder: Path, size: int, picks: dict[str, str]) -> list[Built]:
    """Three, of a user who has measured nothing."""
    device = torch.device("cuda", torch.cuda.current_device())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(auto, "_measured", AlgorithmCache("auto", auto.are_seconds))
        source = GeneratedWeights(size, size, torch.bfloat16, device)
        return [_build(Layer(source, PICKS[method] | picks, B, ranks=2), method) for _ in range(3)]


@pytest.mark.parametrize("size", [1024, 8192])
@pytest.mark.parametrize("method", PICKS)
def test_the_fastest_pair_is_found_once(method: str, size: int, gpu_ranks: Ranks, tmp_path: Path) -> None:
    one, other = gpu_ranks.run(_builds, method, tmp_path, size, {"kernel": "auto", "combine": "auto"})
    assert one == other, "ranks agree"
    assert all(built.right and built.fits for built in one)
    assert len({built.pair for built in one}) == 1
    assert [(built.packed, built.measured) for built in one[1:]] == [(1, 0)] * 2


@pytest.mark.parametrize("method", PICKS)
def test_where_the_sum_of_kernels_is_picked_auto_is_one_that_has_it(
    method: str, gpu_ranks: Ranks, tmp_path: Path
) -> None:
    for found in gpu_ranks.run(_builds, method, tmp_path, 1024, {"kernel": "auto", "combine": "fused"}):
        assert [built.pair for built in found] == [("streamed", "fused")] * 3
        assert all((built.packed, built.measured, built.right) == (1, 0, True) for built in found)
