"""The blocks of Llama 3 8B, with drawn weights: prefill of a prompt, and decoding with a cache (arXiv 2407.21783).

All blocks are one, gone through again and again: its weights are far more than a GPU's cache holds, so it takes as long
as as many different ones would, and the memory of one. Each time has a cache of its own.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.models.base import NETWORKS, Call, Network, check_width
from blockshock.models.rotary import turned, turns
from blockshock.registry import check_range

HEADS, KEY_HEADS, PIECES, THETA, EPS = 32, 8, 128256, 500000.0, 1e-5
ALL, WIDTH = 32, 4096


class Block(nn.Module):
    """Attention with fewer heads of keys than of queries, and a gated feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        keys, inner = width * KEY_HEADS // HEADS, width * 7 // 2
        self.norm1, self.norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, keys, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(
        self, x_BTD: torch.Tensor, turns_2Td: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        normed_BTD, d = self.norm1(x_BTD), x_BTD.shape[-1] // HEADS
        q_BHTd, k_BHTd, v_BHTd = (
            linear(normed_BTD).unflatten(-1, (-1, d)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTd, k_BHTd = turned(q_BHTd, turns_2Td), turned(k_BHTd, turns_2Td)
        if cache is not None:  # the new tokens are the last of those that it holds
            for held_BHTd, new_BHTd in zip(cache, (k_BHTd, v_BHTd), strict=True):
                held_BHTd[:, :, -new_BHTd.shape[2] :] = new_BHTd
            k_BHTd, v_BHTd = cache
        mixed_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=cache is None, enable_gqa=True)
        x_BTD = x_BTD + self.o_proj(mixed_BHTd.transpose(1, 2).flatten(2))
        normed_BTD = self.norm2(x_BTD)
        return x_BTD + self.down_proj(F.silu(self.gate_proj(normed_BTD)) * self.up_proj(normed_BTD))


class Llama(nn.Module):
    """Hidden states, or with a head ids (B, T) → logits of the last token (B, pieces).

    Args:
        blocks: how often the one block is gone through.
        context: tokens of a prompt, or in the cache.
        head: with the embeddings before it and the head behind it.
    """

    def __init__(self, blocks: int, width: int, context: int, head: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width)] * blocks)
        self.pieces: nn.Module | None = nn.Embedding(PIECES, width) if head else None
        self.head: nn.Module | None = nn.Linear(width, PIECES, bias=False) if head else None
        self.norm = nn.RMSNorm(width, EPS)
        self.width, self.context = width, context

    def forward(self, x: torch.Tensor, caches: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> torch.Tensor:
        x_BTD = x if self.pieces is None else self.pieces(x)
        turns_2Td = self._turns(x_BTD)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, turns_2Td, None if caches is None else caches[index])
        x_BTD = self.norm(x_BTD)
        return x_BTD if self.head is None else self.head(x_BTD[:, -1])

    def _turns(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Cosines and sines of the angles of the last tokens of the context."""
        at_T = torch.arange(self.context - x_BTD.shape[1], self.context, device=x_BTD.device)
        return turns(at_T, self.width // HEADS, THETA).to(x_BTD.dtype)


@NETWORKS.register("llama3-8b")
class Prefill(Network):
    """Llama 3 8B on a prompt.

    Args:
        blocks: 1, or the 32 that it has, or any number.
        width: a narrower one, for a trial.
        context: tokens of the prompt.
        head: with embeddings and head, as the whole model has them.
    """

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (1,), "cuda": (1, 4)}
    mlp = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, blocks: int = 1, width: int = WIDTH, context: int = 2048, head: bool = False) -> None:
        check_width(width, 2 * HEADS, blocks=blocks)
        check_range(1, 1 << 17, context=context)
        self.blocks, self.width, self.context, self.head = blocks, width, context, head

    def unavailable(self, device: torch.device) -> str | None:
        if device.type == "cuda" or self.width < WIDTH:
            return None
        return f"its blocks are made for a GPU: try narrower ones, as in {NETWORKS.name_of(type(self))}:width=256"

    def skeleton(self) -> nn.Module:
        return Llama(self.blocks, self.width, self.context, self.head)

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        return (self._tokens(B, self.context, dtype, device, seed),)

    def _tokens(self, B: int, T: int, dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
        stream = torch.Generator(device).manual_seed(seed)
        if self.head:
            return torch.randint(PIECES, (B, T), generator=stream, device=device)
        return torch.randn(B, T, self.width, generator=stream, device=device).to(dtype)


@NETWORKS.register("llama3-8b-decode")
class Decode(Prefill):
    """Llama 3 8B, one more token of each of B sequences whose context is in the cache; else as ``llama3-8b``."""

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (1,), "cuda": (1, 16, 64)}

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        stream = torch.Generator(device).manual_seed(seed)
        size = (B, KEY_HEADS, self.context, self.width // HEADS)
        draw = lambda: torch.randn(size, generator=stream, device=device, dtype=dtype)  # noqa: E731
        return self._tokens(B, 1, dtype, device, seed), [(draw(), draw()) for _ in range(self.blocks)]
