"""What this machine reaches at most: every rank measures it together with the others, before the first benchmark.

One function a ceiling, each called on all ranks together and giving the same on every one.
Under the benchmarks' own protocol, and by the fastest round rather than the median: a ceiling is something that was
reached, and a limit drawn from it is one that a benchmark can hardly beat.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from blockshock.kernels import KERNELS, AlgorithmCache, build_format, build_kernel
from blockshock.machine import (
    Combine,
    Part,
    aligner,
    all_gather,
    build_combine,
    combines,
    memory,
    slowest_of_ranks,
)
from blockshock.matrices import GeneratedWeights, Piece, build_mask
from blockshock.measure import Line, timing
from blockshock.phases.case import DTYPES, this_device

PRODUCTS = {"cuda": ((4096, 4096), (8192, 4096), (8192, 8192), (16384, 4096)), "cpu": ((256, 256), (512, 512))}
"""N = K, and B, of the products whose rates are taken."""
COPIED_BYTES = {"cuda": (1 << 32,), "cpu": (1 << 20, 16 << 20, 64 << 20)}
"""Much more than the cache of a GPU holds; of a CPU, whose caches a flush may not empty, less too."""
MESSAGE_BYTES = {
    "cuda": tuple(4**power << 10 for power in range(10)),  # 1 KiB to 256 MiB
    "cpu": tuple(4**power << 10 for power in range(7)),
}
ROWS = 32
"""Of a message, where it is a matrix."""
ROUNDS = {"cuda": 50, "cpu": 5}
TRIES = 3
"""Of what a busy machine can spoil: a line that its points are too scattered for."""


CACHE = "ceilings"
KEPT_SECONDS = 24 * 3600
"""Longer, and one that was measured while something else had the machine would stand for as long."""


def recall(key: str) -> dict[str, Any]:
    """What this machine was found to reach under such a key, by name as JSON has it; empty where that is not known."""
    kept = _cache().known(key)
    return kept["found"] if kept and 0 <= time.time() - kept["at"] < KEPT_SECONDS else {}


def keep(key: str, found: dict[str, Any]) -> None:
    """Remember it for the next session of this user."""
    _cache().keep(key, {"at": time.time(), "found": found})


def _cache() -> AlgorithmCache:
    return AlgorithmCache(CACHE, _fits)


def _fits(kept: Any) -> bool:
    """Whether this is what ``keep`` wrote: numbers, pairs of them, and None where a machine has no such thing."""
    if not isinstance(kept, dict) or type(kept.get("at")) is not float or not isinstance(kept.get("found"), dict):
        return False
    pairs = [found if isinstance(found, list) else [found, 1] for found in kept["found"].values() if found is not None]
    return all(len(pair) == 2 and all(type(one) in (int, float) and one >= 0 for one in pair) for pair in pairs)


@dataclass(frozen=True)
class _Stopwatch:
    """Takes the seconds of the fastest round of a call, on the slowest rank."""

    device: torch.device
    group: Any
    protocol: timing.Protocol

    @classmethod
    def of(cls, mode: str, flush: bool) -> _Stopwatch:
        device, group = this_device(), dist.group.WORLD
        assert group is not None
        rounds = ROUNDS[device.type]
        align = aligner(device, group)
        return cls(device, group, timing.Protocol(mode, rounds, max(rounds // 5, 1), flush, align))

    def __call__(self, call: timing.Call) -> float:
        return min(slowest_of_ranks(timing.time_call(call, self.device, self.protocol), self.device, self.group))


def launch_s(mode: str, flush: bool) -> float:
    """Seconds of a call that does nothing."""
    fastest = _Stopwatch.of(mode, flush)
    return fastest(torch.zeros(1, device=fastest.device).zero_)


def memory_and_cache(mode: str, flush: bool) -> tuple[float, int]:
    """Bytes a second, the better of copying (bytes read and written) and reading; and bytes of the last-level cache."""
    fastest, rates = _Stopwatch.of(mode, flush), []
    for most in COPIED_BYTES[fastest.device.type]:
        size = min(most, memory.free_bytes(fastest.device) // 8)
        source, target = (torch.zeros(size // 4, device=fastest.device) for _ in range(2))
        rates += [2 * size / fastest(partial(target.copy_, source)), size / fastest(source.sum)]
    return max(rates), memory.cache_bytes(fastest.device)


def dense_flops_per_s(mode: str, flush: bool, dtype: str) -> float:
    """FLOPs a second of the fastest product."""
    fastest, rates = _Stopwatch.of(mode, flush), []
    for width, tokens in PRODUCTS[fastest.device.type]:
        x_BK, w_NK = (torch.randn(rows, width, device=fastest.device).to(DTYPES[dtype]) for rows in (tokens, width))
        rates.append(2 * tokens * width**2 / fastest(partial(F.linear, x_BK, w_NK)))
    return max(rates)


def sparse_flops_per_s(mode: str, flush: bool, dtype: str) -> float | None:
    """FLOPs of kept values a second on the sparse tensor cores; None where no kernel can use them here."""
    fastest = _Stopwatch.of(mode, flush)
    names = [name for name in KERNELS.names() if KERNELS.get(name).unit == "2:4" and KERNELS.get(name).plain]
    able = [name for name in names if build_kernel(name).unavailable(fastest.device, DTYPES[dtype]) is None]
    # Those that read W again for each few tokens come near to nothing, unless there are no others.
    most = max(tokens for _, tokens in PRODUCTS[fastest.device.type])
    able = [name for name in able if build_kernel(name).takes(most)] or able
    return max((_sparse_rate(fastest, name, DTYPES[dtype]) for name in able), default=None)


def _sparse_rate(fastest: _Stopwatch, kernel: str, dtype: torch.dtype) -> float:
    rates, device = [], fastest.device
    for width, tokens in PRODUCTS[device.type]:
        source = GeneratedWeights(width, width, dtype, device)
        mask = build_mask("1100", source)
        packed = build_kernel(kernel).pack(Piece(source, slice(0, width), mask))
        x_BK = torch.randn(tokens, width, device=device).to(dtype)
        rates.append(2 * tokens * packed.operand.values / fastest(partial(packed, x_BK)))
    return max(rates)


def dense_flops_in(mode: str, flush: bool, format: str) -> float | None:
    """The same of dense products in a format; None where there are none here."""
    fastest, rates, chosen = _Stopwatch.of(mode, flush), [], build_format(format)
    if chosen is None or chosen.unavailable(fastest.device, torch.bfloat16):
        return None
    for width, tokens in PRODUCTS[fastest.device.type]:
        x_BK, w_NK = (torch.randn(rows, width, device=fastest.device) for rows in (tokens, width))
        q_BK, q_NK = chosen.quantise(x_BK).numbers, chosen.weights.quantise(w_NK).numbers
        rates.append(2 * tokens * width**2 / fastest(partial(chosen.product, q_BK, q_NK)))
    return max(rates)


def sparse_flops_in(mode: str, flush: bool, format: str) -> float | None:
    """The same on the sparse tensor cores, in FLOPs of kept values."""
    fastest, rates, chosen = _Stopwatch.of(mode, flush), [], build_format(format)
    device, dtype = fastest.device, torch.bfloat16
    names = [
        name for name in KERNELS.names() if KERNELS.get(name).unit == "2:4" and format in KERNELS.get(name).formats
    ]
    able = [name for name in names if build_kernel(name).unavailable(device, dtype) is None]
    if chosen is None or chosen.unavailable(device, dtype):
        return None
    for name, (width, tokens) in itertools.product(able, PRODUCTS[device.type]):
        if not build_kernel(name).takes(tokens):
            continue
        source = GeneratedWeights(width, width, dtype, device)
        packed: Any = build_kernel(name).pack_quantised(Piece(source, mask=build_mask("1100", source)), None, chosen)
        x_BK, _ = chosen.quantise(torch.randn(tokens, width, device=device))
        rates.append(2 * tokens * packed.operand.values / fastest(partial(packed.product, x_BK)))
    return max(rates, default=None)


def sum_line(mode: str, flush: bool, launch: float) -> Line:
    """The line under the times of sums of several sizes, each in the fastest way, beyond that of a launch."""
    return _line(_Stopwatch.of(mode, flush), launch, _reduce)


def gather_line(mode: str, flush: bool, launch: float) -> Line:
    """The same of gathers."""
    return _line(_Stopwatch.of(mode, flush), launch, _gather)


def _line(fastest: _Stopwatch, launch: float, collective: Callable[..., list[timing.Call]]) -> Line:
    """Of the time beyond that of a call that does nothing: in a pass, a collective follows a product.

    Raises:
        ValueError: no line fits, however often it is measured.
    """
    tried = 0
    while True:
        points = []
        for size in MESSAGE_BYTES[fastest.device.type]:
            message = torch.zeros(size // 2, dtype=torch.bfloat16, device=fastest.device)
            points.append((size, min(map(fastest, collective(fastest.group, message))) - launch))
        try:
            return Line.below(points)
        except ValueError:  # on all ranks alike, for they have the same times
            tried += 1
            if tried == TRIES:
                raise


def _reduce(group: Any, message: torch.Tensor) -> list[timing.Call]:
    """The ways to sum messages of ranks."""
    ours = [partial(combine.sum, part) for combine, part in _by_peers(group, message, message.numel())]
    return [partial(dist.all_reduce, message, group=group), *ours]


def _gather(group: Any, message: torch.Tensor) -> list[timing.Call]:
    """The ways to gather what the message is made of."""
    shard = message.chunk(group.size())[group.rank()].clone()
    ours = [partial(combine.gather, part) for combine, part in _by_peers(group, message, shard.numel())]
    return [partial(all_gather, message, shard, group=group), *ours]


def _by_peers(group: Any, message: torch.Tensor, elements: int) -> Iterator[tuple[Combine, Part]]:
    """Ways by memory that GPUs read of each other, and a part of so many elements, which costs nothing to make."""
    for spec in combines.candidates(group.size(), ROWS, message.device, message.dtype)[1:]:
        combine = build_combine(spec, group, message.numel(), message.dtype, message.device)
        yield combine, Part(_made, ROWS, elements // ROWS, message.dtype, message.device)


def _made(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
    """What is where it should be already."""
    assert out is not None
    return out
