"""The sum inside the product's own kernel: nothing is launched for it, and a tile is sent when it is multiplied."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.machine.combines.base import COMBINES, Part
from blockshock.machine.combines.symmetric import TwoShot

MOST_TOKENS = 64
"""That are summed so: of more, partial sums in float32 are more bytes than it saves waiting."""
MOST_FEATURES = 1 << 16
"""For which blocks that wait for each other have a flag each."""


@COMBINES.register("fused")
class Fused(TwoShot):
    """By kernels that can (streamed), of 2 or 4 ranks and few tokens, forward; all else in two shots."""

    dtypes = (torch.bfloat16,)
    is_fused = True

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
    def held_bytes(cls, size: int) -> int:
        return super().held_bytes(2 * 4 * 2 * size)  # two slots, of at most four ranks, in float32

    def sum(self, part: Part) -> torch.Tensor:
        slots = 2 * self._shared.ranks * 4 * part.tokens * part.features
        fits = part.tokens <= MOST_TOKENS and part.features <= MOST_FEATURES and slots <= self._shared.size
        if part.fused is None or not fits:
            return super().sum(part)
        self._shared.enter()
        return part.fused(self._shared.peers)
