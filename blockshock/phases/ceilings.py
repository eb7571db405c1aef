"""What this machine reaches at most: every rank measures it together with the others, before the first benchmark.

Under the benchmarks' own protocol, and by the fastest round rather than the median: a ceiling is something that was
reached, and a limit drawn from it is one that a benchmark can hardly beat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from blockshock import memory, timing
from blockshock.collectives import aligner, all_gather, slowest_of_ranks
from blockshock.kernels import KERNELS, Half, build_kernel
from blockshock.patterns import build_mask
from blockshock.phases.case import DTYPES, this_device
from blockshock.roofline import Ceilings, Line
from blockshock.weights import GeneratedWeights

PRODUCTS = {"cuda": ((4096, 4096), (8192, 4096), (8192, 8192), (16384, 4096)), "cpu": ((256, 256), (512, 512))}
"""N = K, and B, of the products whose rates are taken."""
COPIED_BYTES = {"cuda": (1 << 32,), "cpu": (1 << 20, 16 << 20, 64 << 20)}
"""Much more than the cache of a GPU holds; of a CPU, whose caches a flush may not empty, less too."""
MESSAGE_BYTES = {
    "cuda": tuple(4**power << 10 for power in range(10)),  # 1 KiB to 256 MiB
    "cpu": tuple(4**power << 10 for power in range(7)),
}
ROUNDS = {"cuda": 50, "cpu": 5}


def measure(dtypes: tuple[str, ...], mode: str, flush: bool) -> Ceilings:
    """The ceilings, the same on every rank; all ranks call it together."""
    device, group = this_device(), dist.group.WORLD
    assert group is not None
    rounds = ROUNDS[device.type]
    protocol = timing.Protocol(mode, rounds, warmup=max(rounds // 5, 1), flush=flush, align=aligner(device, group))

    def fastest(call: timing.Call) -> float:
        return min(slowest_of_ranks(timing.time_call(call, device, protocol), device, group))

    token = torch.zeros(1, device=device)
    launch = fastest(token.zero_)
    several = group.size() > 1
    return Ceilings(
        memory_bytes_per_s=max(_memory_rate(fastest, size, device) for size in COPIED_BYTES[device.type]),
        cache_bytes=memory.cache_bytes(device),
        dense_flops_per_s={name: _dense_rate(fastest, DTYPES[name], device) for name in dtypes},
        sparse_flops_per_s=_sparse_rates(fastest, dtypes, device),
        all_reduce=_line(fastest, launch, partial(_reduce, group), device) if several else None,
        all_gather=_line(fastest, launch, partial(_gather, group), device) if several else None,
        launch_s=launch,
    )


Fastest = Callable[[timing.Call], float]


def _memory_rate(fastest: Fastest, size: int, device: torch.device) -> float:
    """The better of copying (bytes read and written) and reading."""
    size = min(size, memory.free_bytes(device) // 8)
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    return max(2 * size / fastest(lambda: target.copy_(source)), size / fastest(lambda: source.sum()))


def _dense_rate(fastest: Fastest, dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of the fastest product."""
    rates = []
    for width, tokens in PRODUCTS[device.type]:
        x_BK, w_NK = (torch.randn(rows, width, device=device).to(dtype) for rows in (tokens, width))
        rates.append(2 * tokens * width**2 / fastest(partial(F.linear, x_BK, w_NK)))
    return max(rates)


def _sparse_rates(fastest: Fastest, dtypes: tuple[str, ...], device: torch.device) -> dict[str, float]:
    """FLOPs of kept values a second on the sparse tensor cores, of the dtypes and kernels that can use them here."""
    rates: dict[str, float] = {}
    for name in KERNELS.names():
        if KERNELS.get(name).unit != "2:4":
            continue
        for dtype in dtypes:
            if build_kernel(name).unavailable(device, DTYPES[dtype]) is None:
                rates[dtype] = max(rates.get(dtype, 0.0), _sparse_rate(fastest, name, DTYPES[dtype], device))
    return rates


def _sparse_rate(fastest: Fastest, kernel: str, dtype: torch.dtype, device: torch.device) -> float:
    rates = []
    for width, tokens in PRODUCTS[device.type]:
        source = GeneratedWeights(width, width, dtype, device)
        mask = build_mask("1100", source)
        packed = build_kernel(kernel).pack(Half(source, slice(0, width), mask))
        x_BK = torch.randn(tokens, width, device=device).to(dtype)
        rates.append(2 * tokens * packed.operand.values / fastest(partial(packed, x_BK)))
    return max(rates)


def _line(
    fastest: Fastest, launch: float, collective: Callable[[torch.Tensor], timing.Call], device: torch.device
) -> Line:
    """Of the time beyond that of a call that does nothing: in a pass, a collective follows a product."""
    points = []
    for size in MESSAGE_BYTES[device.type]:
        message = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
        points.append((size, fastest(collective(message)) - launch))
    return Line.below(points)


def _reduce(group: Any, message: torch.Tensor) -> timing.Call:
    return partial(dist.all_reduce, message, group=group)


def _gather(group: Any, message: torch.Tensor) -> timing.Call:
    """A gather whose result is the message."""
    return partial(all_gather, message, message.chunk(group.size())[group.rank()].clone(), group=group)
