"""The fastest way for a layer, which is found by measuring; here, which there are to measure."""

from __future__ import annotations

import torch

from blockshock.machine.combines.base import COMBINES, Combine, combine_of
from blockshock.registry import parse_spec


@COMBINES.register("auto")
class Auto(Combine):
    """Whichever is fastest of those that add up right; measured once on a machine for each shape."""

    device_types = ("cuda",)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return None  # of what can run there nccl, or gloo's counterpart, is one

    @classmethod
    def held_bytes(cls, size: int, ranks: int) -> int:
        others = (COMBINES.get(name) for name in COMBINES.names())
        return max(kind.held_bytes(size, ranks) for kind in others if kind is not cls)


def candidates(ranks: int, tokens: int, device: torch.device, dtype: torch.dtype, fuses: bool = False) -> list[str]:
    """Specs of what can run there; ``nccl``, which comes first, always can.

    Args:
        fuses: what makes the parts can sum them itself.
    """
    kinds = {name: COMBINES.get(name) for name in ("nccl", *COMBINES.names()) if name != "auto"}
    kinds = {name: kind for name, kind in kinds.items() if fuses or not kind.is_fused}
    specs = [*kinds, *(spec for kind in kinds.values() for spec in kind.variants)]
    able = [spec for spec in specs if kinds[parse_spec(spec)[0]].unavailable(device, dtype) is None]
    return [spec for spec in able if unsuitable(spec, ranks, tokens) is None]


def unsuitable(spec: str, ranks: int | None, tokens: int) -> str | None:
    """None, or one sentence that says why the way that a spec names is not for so many ranks or tokens."""
    kind, parameters = combine_of(spec)
    return kind.unsuitable(ranks, tokens, **parameters)
