"""How the kernel streamed is launched: x in parts of so many tokens as one launch takes, splits added up behind."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from blockshock.kernels.source import source_of
from blockshock.kernels.streamed_plan import MOST_TOKENS, STEP, WARPS, Plan, plan_for
from blockshock.machine import CudaKernel, Peers, compiled, on_gpu

WAIT_SECONDS = 600
"""After which a block that waits for a peer's ends in an error, as torch's collectives do."""
_ORDERED_SINCE = (12, 5)
"""CUDA whose compiler knows that metadata are in ascending order."""
_ADDED = 256
"""Threads of a block that adds up splits."""


class Scales(NamedTuple):
    """Of numbers of eight bits: float32 (B, 1) of tokens, (N,) of channels; and the dtype of y."""

    of_tokens: torch.Tensor
    of_channels: torch.Tensor
    dtype: torch.dtype


def multiplied(
    values_NJ: torch.Tensor,
    metadata: torch.Tensor,
    x_BK: torch.Tensor,
    bias: torch.Tensor | None,
    plan: Plan | None = None,
    out_BN: torch.Tensor | None = None,
    peers: Peers | None = None,
    scales: Scales | None = None,
) -> torch.Tensor:
    """x @ Wᵀ (+ bias), (B, N), in launches of at most MOST_TOKENS tokens.

    Args:
        metadata: by fragments; of one tile, where that stands for all.
        x_BK: as of ``aligned_rows``.
        plan: of each launch, where it is not the usual one.
        out_BN: where to write it, contiguous.
        peers: it is summed over their ranks, which all multiply as many tokens, at most MOST_TOKENS.
        scales: of numbers of eight bits, and of those alone.
    """
    (N, J), (B, device) = values_NJ.shape, (len(x_BK), x_BK.device)
    y_BN = x_BK.new_empty(B, N, dtype=scales and scales.dtype) if out_BN is None else out_BN
    kind = scales is not None, metadata.shape[:2] == (1, 1)
    with on_gpu(device):  # whose current stream the launches take
        start = 0
        while start < B:
            chosen = plan or plan_for(N, 2 * J, min(B - start, MOST_TOKENS), device, *kind)
            part, stop = (x_BK, y_BN, scales), start + chosen.tokens
            if chosen.tokens < B:
                some = scales and scales._replace(of_tokens=scales.of_tokens[start:stop])
                part = x_BK[start:stop], y_BN[start:stop], some
            _launch(chosen, values_NJ, metadata, bias, *part, peers)
            start = stop
    return y_BN


def _launch(
    plan: Plan,
    values_NJ: torch.Tensor,
    metadata: torch.Tensor,
    bias: torch.Tensor | None,
    x_BK: torch.Tensor,
    y_BN: torch.Tensor,
    scales: Scales | None,
    peers: Peers | None,
) -> None:
    (tokens, N), pairs = y_BN.shape, plan.columns // STEP
    through_memory = plan.splits > 1 and not plan.clusters
    partials = y_BN.new_empty(plan.splits, tokens, N, dtype=torch.float32) if through_memory else y_BN
    # What is not there is never read: y stands for it.
    added, has_bias = y_BN if bias is None else bias, int(bias is not None)
    dtype, device = y_BN.dtype, x_BK.device
    sizes = (N, x_BK.shape[1] // pairs, tokens, x_BK.stride(0) // pairs, has_bias)
    beside = [] if scales is None else [scales.of_tokens, scales.of_channels]
    args: list[torch.Tensor | int] = [values_NJ, metadata, x_BK, added, y_BN, partials, *sizes, *beside]
    if peers is not None:
        memories = [*peers.memories, *peers.memories[:1] * (4 - len(peers.memories))]
        args += [*memories, peers.rank, peers.slot, peers.turns]
    fp8 = x_BK.dtype == torch.float8_e4m3fn
    # While more tokens are quantised, those blocks keep their places, and the product's crowd into what is left.
    early = plan.eight_bits and plan.clusters and tokens == 1
    _kernel("streamed_product", dtype, plan, device, len(peers.memories) if peers else 0, fp8, early)(
        grid=(-(-N // plan.rows), plan.splits, 1),
        block=(32 * WARPS, 1, 1),
        args=args,
        shared_mem=plan.shared_bytes,
        early=early,  # for W is older than what quantises x
    )
    if through_memory:
        _kernel("add_splits", dtype, plan, device, 0, fp8)(
            grid=(-(-tokens * N // (4 * _ADDED)), 1, 1),
            block=(_ADDED, 1, 1),
            args=[partials, added, y_BN, N, tokens, has_bias, *beside],
        )


@cache
def _kernel(
    name: str,
    dtype: torch.dtype,
    plan: Plan,
    device: torch.device,
    ranks: int = 0,
    fp8: bool = False,
    early: bool = False,
) -> CudaKernel:
    """For a y of that dtype; of that GPU, which must be the current one."""
    ordered = tuple(map(int, str(torch.version.cuda).split("."))) >= _ORDERED_SINCE
    definitions = plan.definitions() | {"BF16": int(dtype == torch.bfloat16), "ORDERED": int(ordered)}
    definitions["EARLY"] = int(early)
    if plan.eight_bits:
        definitions["FP8"] = int(fp8)
    shared_bytes = plan.shared_bytes if name == "streamed_product" else 0
    if ranks:
        definitions |= {"RANKS": ranks, "WAIT_SECONDS": WAIT_SECONDS}
    return compiled(source(ranks > 0, plan.eight_bits), name, definitions, shared_bytes)


def source(fused: bool = False, eight_bits: bool = False) -> str:
    """In CUDA C++; ``fused``: with the sum over ranks."""
    numbers = "bytes" if eight_bits else "halves"
    return source_of("ptx", numbers, *["fused_sum"] * fused, "streamed")
