"""The sum inside the product's own kernel: nothing is launched for it, and a tile is sent when it is multiplied."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.machine.collectives import Group
from blockshock.machine.combines.base import COMBINES, Part
from blockshock.machine.combines.symmetric import TwoShot
from blockshock.machine.combines.workspace import workspace_bytes, workspace_for

MOST_TOKENS = 64
"""That are summed so: of more, partial sums in float32 are more bytes than it saves waiting."""


def sums_bytes(size: int, ranks: int) -> int:
    """Bytes of two slots of float32 sums, of each peer as many as a bf16 part of ``size`` bytes has."""
    return workspace_bytes(2 * (ranks - 1) * 2 * size)


@COMBINES.register("fused")
class Fused(TwoShot):
    """By kernels that can (streamed), of 2 or 4 ranks and few tokens, forward; all else in two shots."""

    dtypes = (torch.bfloat16,)
    is_fused = True

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(group, elements, dtype, device)
        size = elements * dtype.itemsize
        self._sums = workspace_for(group, sums_bytes(size, group.size()), device, "sums")
        self._peers = self._sums.peers  # here, for a capture would set its turns back at each replay

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        if reason := super().unavailable(device, dtype):
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 9 else f"needs GPUs of compute capability 9.0 and up, this one has {major}.{minor}"

    @classmethod
    def unsuitable(cls, ranks: int | None, tokens: int, **parameters: Any) -> str | None:
        if ranks not in (None, 1, 2, 4):
            return f"is for 2 or 4 ranks, not {ranks}"
        if tokens > MOST_TOKENS:
            return f"is for up to {MOST_TOKENS} tokens, there are {tokens}: pick two_shot"
        return None

    @classmethod
    def held_bytes(cls, size: int, ranks: int) -> int:
        return super().held_bytes(size, ranks) + sums_bytes(size, ranks)

    def sum(self, part: Part) -> torch.Tensor:
        fits = (self._sums.ranks - 1) * part.tokens * part.features <= self._peers.slot
        if part.fused is None or part.tokens > MOST_TOKENS or not fits:
            return super().sum(part)
        self._shared.enter()
        self._sums.enter()
        return part.fused(self._peers)
