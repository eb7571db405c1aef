"""Timing: what the modes measure, and that the numbers are those of a loop anybody would write by hand."""

import statistics
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from blockshock import timing
from blockshock.ranks import Ranks

LAYERS = [(4096, 1024), (8192, 64), (8192, 1024)]
"""(N, B) whose dense product takes 20 µs and more on current data-centre GPUs."""


def _bare_and_ours(N: int, B: int) -> dict[str, float]:
    """Median seconds of one captured product: by a loop with nothing of ours in it, and by our own."""
    x_BK, w_NK = (torch.randn(rows, N, device="cuda", dtype=torch.bfloat16) for rows in (B, N))
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        F.linear(x_BK, w_NK)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        F.linear(x_BK, w_NK)

    def bare() -> float:
        milliseconds = []
        for _ in range(100):
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            milliseconds.append(start.elapsed_time(end))
        return statistics.median(milliseconds) * 1e-3

    def ours() -> float:
        protocol = timing.Protocol("cuda_graph", rounds=100, warmup=10)
        with torch.inference_mode():
            samples = timing.time_call(lambda: F.linear(x_BK, w_NK), torch.device("cuda"), protocol)
        return timing.percentile(samples, 50)

    # Alternating, because a GPU under load lowers its clock as it warms up.
    rounds = [(bare(), ours()) for _ in range(6)][1:]
    bare_times, our_times = zip(*rounds, strict=True)
    return {"bare": statistics.median(bare_times), "ours": statistics.median(our_times)}


@pytest.fixture(scope="module")
def gpu_rank() -> Iterator[Ranks]:
    if not torch.cuda.device_count():
        pytest.skip("needs a CUDA GPU: run it on a machine that has one")
    with Ranks.spawn(1, device="cuda") as ranks:
        yield ranks


@pytest.mark.gpu
@pytest.mark.parametrize(("N", "B"), LAYERS)
def test_median_is_that_of_a_bare_graph_loop(
    N: int, B: int, gpu_rank: Ranks, record_property: Callable[[str, object], None]
) -> None:
    (seconds,) = gpu_rank.run(_bare_and_ours, N, B)
    ratio = seconds["ours"] / seconds["bare"]
    print(f"N={N} B={B}: bare {seconds['bare'] * 1e6:.2f} µs, ours {seconds['ours'] * 1e6:.2f} µs, ratio {ratio:.4f}")
    record_property("ratio", ratio)
    assert seconds["bare"] >= 20e-6, "too short a call for this comparison"
    assert abs(ratio - 1) < 0.02
