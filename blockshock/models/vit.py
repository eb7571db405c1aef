"""Vision transformers, 224 × 224 pixels in patches of 16, with drawn weights (Dosovitskiy et al., arXiv 2010.11929)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.models.base import NETWORKS, Call, Network, check_width

PIXELS, PATCH, HEAD, CLASSES = 224, 16, 64, 1000
TOKENS = (PIXELS // PATCH) ** 2 + 1


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        normed_BTD = self.norm1(x_BTD)
        q_BHTd, k_BHTd, v_BHTd = (
            linear(normed_BTD).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd)
        x_BTD = x_BTD + self.out(mixed_BHTd.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class VisionTransformer(nn.Module):
    """Images (B, 3, 224, 224) → logits (B, 1000)."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.first = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, TOKENS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, CLASSES)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        patches_BTD = self.patches(image_BCHW).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.first.expand(len(patches_BTD), -1, -1), patches_BTD], 1) + self.positions
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits: torch.Tensor = self.head(self.norm(x_BTD)[:, 0])
        return logits


@NETWORKS.register("vit_b")
class VitB(Network):
    """ViT-B/16.

    Args:
        blocks, width: fewer and narrower ones, for a trial.
    """

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (1,), "cuda": (16, 256)}
    mlp = ("up", "down")

    def __init__(self, blocks: int = 12, width: int = 768) -> None:
        check_width(width, HEAD, blocks=blocks)
        self.blocks, self.width = blocks, width

    def skeleton(self) -> nn.Module:
        return VisionTransformer(self.blocks, self.width)

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        stream = torch.Generator(device).manual_seed(seed)
        return (torch.randn(B, 3, PIXELS, PIXELS, generator=stream, device=device).to(dtype),)


@NETWORKS.register("vit_l")
class VitL(VitB):
    """ViT-L/16; as ``vit_b``."""

    def __init__(self, blocks: int = 24, width: int = 1024) -> None:
        super().__init__(blocks, width)
