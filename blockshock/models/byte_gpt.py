"""A small language model of bytes: a decoder with its norms before attention and feed-forward part, in plain torch.

No tokenizer, so a loss is one per byte of the text, whatever the text is. Positions are rotary: no table of them limits
the context, or takes a share of so few weights. The head is a layer of its own: to be the embedding over again would
save 2 % of three million weights. Linear layers are without biases, and the width is a multiple of 64: their sizes are
those that kernels of 2:4 take.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.models.base import STD, check_width
from blockshock.models.rotary import turned, turns
from blockshock.registry import check_range
from blockshock.training.recipes.activation import ACTS
from blockshock.training.recipes.blocks import check_choice

BYTES, THETA = 256, 10000.0


class Block(nn.Module):
    """Attention to the bytes before, and a feed-forward part of four times the width."""

    def __init__(self, width: int, heads: int, act: str) -> None:
        super().__init__()
        self.heads, self.act = heads, ACTS[act]
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: torch.Tensor, turns_2Td: torch.Tensor) -> torch.Tensor:
        q_BHTd, k_BHTd, v_BHTd = (
            part_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part_BTD in self.qkv(self.norm1(x_BTD)).chunk(3, -1)
        )
        q_BHTd, k_BHTd = turned(q_BHTd, turns_2Td), turned(k_BHTd, turns_2Td)
        mixed_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)
        x_BTD = x_BTD + self.out(mixed_BHTd.transpose(1, 2).flatten(2))
        return x_BTD + self.down(self.act(self.up(self.norm2(x_BTD))))


class ByteGPT(nn.Module):
    """Bytes (B, T) → logits of the byte that follows each (B, T, 256).

    Args:
        width, layers, heads: without arguments 3.3 million parameters, those of the network ``lm``; with a width of 512
            and 8 layers 25 million.
        context: bytes of the sequences that it is trained and judged on; it takes any.
        act: of the feed-forward parts: gelu, relu, or relu2, its square.

    Raises:
        InputError: there is no such activation function; the width is no multiple of 64, or heads do not divide it into
            pairs of channels.
    """

    def __init__(
        self, width: int = 256, layers: int = 4, heads: int = 4, context: int = 512, act: str = "gelu"
    ) -> None:
        super().__init__()
        check_choice("act", act, tuple(ACTS))
        check_width(width, 64, layers=layers, heads=heads)
        check_range(1, 1 << 16, context=context)
        if width % (2 * heads):
            raise InputError(f"heads must divide half of the width, {width // 2}, got heads={heads}")
        self.width, self.heads, self.context = width, heads, context
        self.bytes = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(Block(width, heads, act) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)

    def forward(self, bytes_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.bytes(bytes_BT)
        at_T = torch.arange(bytes_BT.shape[1], device=bytes_BT.device)
        turns_2Td = turns(at_T, self.width // self.heads, THETA).to(self.bytes.weight.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, turns_2Td)
        logits_BTV: torch.Tensor = self.head(self.norm(x_BTD))
        return logits_BTV

    def draw(self, seed: int) -> ByteGPT:
        """Give it the weights that training begins with: N(0, 0.02), of what is added to the residual stream over
        √(2 · layers), as GPT-2's. Drawn on the CPU: a seed gives the same bits wherever it is."""
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, held in self.named_parameters():
                if held.ndim > 1:
                    added = name.endswith(("out.weight", "down.weight"))
                    std = STD / (2 * len(self.blocks)) ** 0.5 if added else STD
                    held.copy_(torch.empty(held.shape).normal_(0, std, generator=stream))
                else:
                    held.fill_(name.endswith("weight"))
        return self
