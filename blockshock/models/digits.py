"""Handwritten digits of 8 × 8 pixels, and a small residual network that reads them: a task that is no language."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.models.base import STD
from blockshock.models.tasks import TASKS, Batch, Task
from blockshock.models.text import DATA
from blockshock.training.recipes.activation import ACTS

SIDE, CLASSES, PIXEL = 8, 10, 17
TRAINED_ON = 1347
"""The first three quarters; other hands wrote the rest."""


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The committed images (1797, 8, 8), float32 from 0 to 1, and what digits (1797,) they are."""
    lines = (DATA / "digits.txt").read_text(encoding="ascii").split("\n")[:-1]
    pixels = torch.tensor([[int(letter, PIXEL) for letter in line[2:]] for line in lines])
    return (pixels / (PIXEL - 1)).unflatten(1, (SIDE, SIDE)), torch.tensor([int(line[0]) for line in lines])


def moved(images_IHW: torch.Tensor) -> torch.Tensor:
    """Each image, and moved by a pixel in each of eight ways: (9 I, H·W), nine in a row of each."""
    padded = F.pad(images_IHW, (1, 1, 1, 1))
    return padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1).flatten(0, 2).flatten(1)


class Block(nn.Module):
    """A feed-forward part of four times the width, beside which the input goes on."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), ACTS[act]
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD + self.down(self.act(self.up(self.norm(x_BD))))


class DigitNet(nn.Module):
    """Pixels (B, 64) → logits (B, 10)."""

    def __init__(self, width: int, layers: int, act: str = "gelu") -> None:
        super().__init__()
        self.pixels = nn.Linear(SIDE * SIDE, width)
        self.blocks = nn.ModuleList(Block(width, act) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        x_BD = self.pixels(x_BD)
        for block in self.blocks:
            x_BD = block(x_BD)
        logits_BC: torch.Tensor = self.head(self.norm(x_BD))
        return logits_BC


@TASKS.register("digits")
class Digits(Task):
    """Which digit a hand wrote, by a ``DigitNet``; hands that wrote none of the training images."""

    unit = "image"
    steps: ClassVar = {"cpu": 80, "cuda": 200}
    lr: ClassVar = {"cpu": 8e-3, "cuda": 1e-3}
    margin, learnt = 0.05, 1.5
    gib: ClassVar = {"cpu": 0.2, "cuda": 1.0}
    sizes: ClassVar = {"cpu": {"width": 64, "layers": 2}, "cuda": {"width": 512, "layers": 4}}
    batches: ClassVar = {"cpu": 64, "cuda": 512}

    def tokens(self, device_type: str) -> int:
        return int(self.batches[device_type])

    def skeleton(self, device_type: str) -> nn.Module:
        return DigitNet(**self.sizes[device_type], act=self.act)

    @torch.no_grad()
    def draw(self, model: nn.Module, seed: int) -> None:
        stream = torch.Generator().manual_seed(seed)
        for name, held in model.named_parameters():
            if held.ndim > 1:
                std = 1 / math.sqrt(held.shape[1]) if name.startswith("pixels") else STD
                held.copy_(torch.empty(held.shape).normal_(0, std, generator=stream))
            else:
                held.fill_("norm" in name and name.endswith("weight"))

    def load(self, device: torch.device, corpus: str | None) -> str:
        images_IHW, digits_I = digits()
        self._B = self.batches[device.type]
        self._x_ID = moved(images_IHW[:TRAINED_ON]).to(device)
        self._of_I = digits_I[:TRAINED_ON].repeat_interleave(9).to(device)
        self._held = images_IHW[TRAINED_ON:].flatten(1).to(device), digits_I[TRAINED_ON:].to(device)
        return f"digits.txt, {TRAINED_ON} images, each moved by a pixel too"

    def batch(self, stream: torch.Generator) -> Batch:
        at_B = torch.randint(len(self._x_ID), (self._B,), generator=stream).to(self._x_ID.device)
        return self._x_ID[at_B], self._of_I[at_B]

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        x_BD, of_B = batch
        return F.cross_entropy(model(x_BD).float(), of_B)

    def bits(self, model: nn.Module) -> float:
        with torch.inference_mode():
            return self.loss(model, self._held).item() / math.log(2)
