"""Kernels and ways to combine of GPUs, on CPU ranks, that take what is planted: for how pairs of them are chosen.

What such a kernel sums by itself lies in memory that all ranks read: fake_peers.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_peers import faked

from blockshock.kernels import KERNELS, AlgorithmCache, Packed, auto
from blockshock.kernels.reference import PackedReference, Reference
from blockshock.machine import Peers
from blockshock.machine.combines.fused import Fused
from blockshock.matrices import Piece
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer, combined
from blockshock.methods.pieces import PieceMethod

CPU = torch.device("cpu")
N, K, B = 64, 96, 16
Pair = tuple[str, str]


class PackedSumming(PackedReference):
    """It sums as those on GPUs do: each rank's float32 part lies where all read it, in rank order."""

    fuses, wrong = True, False

    def summed(self, x_BK: torch.Tensor, peers: Peers) -> torch.Tensor:
        part_BN = self(x_BK).float()
        places = [memory[: part_BN.numel()].view_as(part_BN) for memory in peers.memories]
        places[peers.rank].copy_(part_BN)
        dist.barrier()
        total_BN = sum(places[1:], places[0].clone()).to(x_BK.dtype)
        dist.barrier()
        return total_BN * 1.5 if self.wrong else total_BN


class Summing(Reference):
    contender, fuses, most_tokens = True, True, 64

    def pack(self, piece: Piece, bias: torch.Tensor | None = None, backward: bool = False) -> Packed:
        return PackedSumming(piece, bias)


class Twisted(PackedSumming):
    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x_BK)


@dataclass(frozen=True)
class Planted:
    """What calls take on each of two ranks: a product by its kernel, and a layer by its kernel and combine.

    Attributes:
        folder: where what was measured is remembered.
    """

    folder: Path
    pairs: dict[Pair, list[float]]
    products: dict[str, list[float]] = field(
        default_factory=lambda: {"gathered": [1.0, 1.0], "summing": [2.0, 2.0], "reference": [3.0, 3.0]}
    )


@dataclass(frozen=True)
class Found:
    """A layer that was built on one rank.

    Attributes:
        measured: pairs, in the order of their calls.
        packed: how many packings were made, and how many of them were there at most at a time.
        error: of y, relative; infinite where ranks have different bits.
    """

    pair: Pair
    measured: list[Pair]
    packed: tuple[int, int]
    error: float
    said: str


@contextmanager
def pairs_planted(planted: Planted) -> Iterator[tuple[pytest.MonkeyPatch, list[Pair], list[Any]]]:
    """Kernels and combines of GPUs are to be had, and take what was planted; what was measured, and packed."""
    measured: list[Pair] = []
    packings: list[Any] = []
    call, packed, rank = combined.Combined._call, PieceMethod._packed, dist.get_rank()

    def named(self: Any, x_BK: torch.Tensor) -> Any:
        made, pair = call(self, x_BK), (self._kernel_name, self._combine)

        def run() -> Pair:
            made()
            return pair

        return run

    def timed(calls: list[Any], *_: Any) -> list[list[float]]:
        pairs = [call() for call in calls]
        measured.extend(pairs)
        return [[planted.pairs.get(pair, [60.0, 60.0])[rank]] * 3 for pair in pairs]

    def counted(*given: Any) -> Any:
        alive = sum(one() is not None for one, _ in packings)
        made = packed(*given)
        packings.append((weakref.ref(made), alive + 1))
        return made

    with faked(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(planted.folder))
        patch.setattr(KERNELS, "_entries", {**KERNELS._entries, "summing": Summing})
        patch.setattr(Reference, "contender", True)
        patch.setattr(Fused, "unavailable", classmethod(lambda *_: None))
        patch.setattr(auto, "_measured", AlgorithmCache("auto", auto.are_seconds))
        patch.setattr(auto, "_median_seconds", lambda kernel, *_: planted.products[kernel.name][rank])
        patch.setattr(combined.Combined, "_call", named)
        patch.setattr(combined.timing, "time_calls", timed)
        patch.setattr(PieceMethod, "_packed", counted)
        yield patch, measured, packings


def build_planted(planted: Planted, method: str, picks: dict[str, str], given: dict[str, Any] | None = None) -> Found:
    """Of one layer, on a rank.

    Args:
        given: of the layer, beside what is picked.
    """
    with pairs_planted(planted) as (_, measured, packings):
        return build_and_ask(method, picks, measured, packings, **given or {})


def build_and_ask(method: str, picks: dict[str, str], measured: list[Pair], packings: list[Any], **given: Any) -> Found:
    """Of a layer that is built now, and asked for y of ``B`` tokens."""
    measured.clear()
    packings.clear()
    source = GeneratedWeights(N, K, torch.bfloat16, CPU, with_bias=True)
    layer = Layer(source, picks, **{"tokens": B, "ranks": 2, **given})
    kind, group = METHODS.get(method), dist.group.WORLD
    built = kind(layer, group)
    most = max(count for _, count in packings)
    x_BK = torch.randn(B, K, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.no_grad():
        y_BN = built(x_BK)
    others = [torch.empty_like(y_BN) for _ in range(2)]
    dist.all_gather(others, y_BN)
    reference = kind.multiplied(layer, 2)
    right = kind.met(layer, x_BK, 2).double() @ reference.rows(0, N).double().T + source.bias.double()
    error = float((y_BN.double() - right).norm() / right.norm()) if torch.equal(*others) else float("inf")
    assert built.resolved == {"kernel": built._kernel_name}
    pair = (built._kernel_name, built._combine)
    return Found(pair, list(measured), (len(packings), most), error, built.algorithm)
