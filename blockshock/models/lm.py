"""A byte-level language model with trained weights: what a row loses of it is counted in bits per byte.

``tests/data/train_lm.py`` makes the weights, and ``lm.json`` beside them says of what, where and how. All text is in
``data``, too: it is of the same kind as what the model was trained on, and none of what it is judged by was in that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import nn

from blockshock.errors import InputError
from blockshock.models import text
from blockshock.models.base import NETWORKS, Call, Network
from blockshock.models.byte_gpt import ByteGPT

WEIGHTS = Path(text.__file__).parent / "data" / "lm.safetensors"
TRAIN = f"PYTHONPATH=. python tests/data/train_lm.py --corpus {text.CORPUS}"
MISSING = (
    f"its weights, {WEIGHTS.name}, are not in this installation; in a checkout make them, on a GPU in minutes: "
    f"{text.COLLECT} && {TRAIN}"
)
BATCH = 16
JUDGED, CALIBRATED = {"cpu": 12 << 10, "cuda": 128 << 10}, {"cpu": 8 << 10, "cuda": 64 << 10}
"""Bytes, by device type: a CPU takes a second for a few."""


@NETWORKS.register("lm")
class LanguageModel(Network):
    """3.3 million parameters: bytes of English → logits of the next byte."""

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (2,), "cuda": (16, 64)}
    mlp = ("up", "down")
    real = True

    def unavailable(self, device: torch.device) -> str | None:
        return None if WEIGHTS.is_file() else MISSING

    def skeleton(self) -> nn.Module:
        """Of the sizes that the weights have, or of the usual ones where they are not there."""
        return ByteGPT(**_sizes())

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
        """It with its trained weights.

        Raises:
            InputError: their file is not there.
        """
        if not WEIGHTS.is_file():
            raise InputError(f"lm: {MISSING}")
        with torch.device("meta"):
            model = self.skeleton()
        with safe_open(WEIGHTS, "pt") as file:
            held = {name: file.get_tensor(name).to(device, dtype) for name in model.state_dict()}
        model.load_state_dict(held, assign=True)
        return model.requires_grad_(False).eval()

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        windows_WT = _windows(text.HELD_OUT, device, None)[:, :-1]
        return (windows_WT[torch.arange(B, device=device) % len(windows_WT)],)

    def calibration(self, dtype: torch.dtype, device: torch.device, seed: int) -> list[Call]:
        windows_WT = _windows(text.CALIBRATION, device, CALIBRATED[device.type])[:, :-1]
        return [(part_BT.contiguous(),) for part_BT in windows_WT.split(BATCH)]

    def judged(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Bits of each byte of what is held out."""
        return text.bits(model, _windows(text.HELD_OUT, device, JUDGED[device.type]))

    def likeness(self, found: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
        """``bits_per_byte``, and ``added_bits_per_byte``: how many more they are than the dense network's."""
        both = found.double().mean().item(), dense.double().mean().item()
        return {"bits_per_byte": both[0], "added_bits_per_byte": both[0] - both[1]}


def _windows(name: str, device: torch.device, size: int | None) -> torch.Tensor:
    """Of the first bytes of a committed text, or of all."""
    return text.windows(text.committed_text(name)[:size], ByteGPT(**_sizes()).context).to(device)


def _sizes() -> dict[str, Any]:
    """Arguments of a ByteGPT with such weights; none, for the usual ones, where they are not there."""
    if not WEIGHTS.is_file():
        return {}
    with safe_open(WEIGHTS, "pt") as file:
        return {name: int(size) for name, size in file.metadata().items()}
