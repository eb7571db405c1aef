"""English text as bytes: the corpus that a language model is trained on, what it is judged by and calibrated with.

``tests/data/collect_text.py`` makes all of it, of the docstrings of pinned packages. The corpus is not in the
repository, its hash is (``data/lm_corpus.json``); the other two are: no paragraph of what is held out is in the corpus.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from blockshock.errors import InputError

DATA = Path(__file__).parent / "data"
HELD_OUT, CALIBRATION, CORPUS = "lm_held_out.txt", "lm_calibration.txt", "lm_corpus.txt"
COLLECT = f"python tests/data/collect_text.py {CORPUS}"


def about_texts() -> dict[str, Any]:
    """What is committed about the three texts: hashes, sizes, packages, and which documents are held out."""
    found: dict[str, Any] = json.loads((DATA / "lm_corpus.json").read_text(encoding="ascii"))
    return found


def committed_text(name: str) -> torch.Tensor:
    """HELD_OUT or CALIBRATION, as bytes (N,) of uint8."""
    return _bytes((DATA / name).read_bytes())


def corpus(path: Path | str) -> torch.Tensor:
    """The corpus, as bytes (N,) of uint8.

    Raises:
        InputError: the file is not there, or it is another text than the one whose hash is committed.
    """
    try:
        read = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it in a checkout: {COLLECT}") from error
    wanted = about_texts()["files"][CORPUS]["sha256"]
    if (found := hashlib.sha256(read).hexdigest()) != wanted:
        raise InputError(
            f"{path} is not the corpus: its SHA-256 is {found}, that of the corpus {wanted}; make it in a checkout: "
            f"{COLLECT}"
        )
    return _bytes(read)


def _bytes(read: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(read), dtype=torch.uint8)


def windows(text_N: torch.Tensor, context: int) -> torch.Tensor:
    """The text cut into (W, context + 1): bytes, each with the one that follows. What is left at the end is left out.

    Raises:
        InputError: the text is shorter than one.
    """
    _check_length(text_N, context)
    return text_N.unfold(0, context + 1, context).long()


def drawn_windows(text_N: torch.Tensor, B: int, context: int, stream: torch.Generator) -> torch.Tensor:
    """B windows (B, context + 1) of the text, from anywhere in it: what a step of training is made of.

    Args:
        stream: a generator on the CPU, so that a seed draws the same wherever the text is.

    Raises:
        InputError: the text is shorter than one.
    """
    _check_length(text_N, context)
    at_B = torch.randint(len(text_N) - context, (B,), generator=stream).to(text_N.device)
    return text_N[at_B[:, None] + torch.arange(context + 1, device=text_N.device)].long()


def _check_length(text_N: torch.Tensor, context: int) -> None:
    if len(text_N) <= context:
        raise InputError(f"a text of {len(text_N)} bytes has no window of {context} bytes and the one that follows")


def loss(model: nn.Module, windows_BT: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of each byte given those before it in its window, in nats; computed in float32."""
    logits_BTV = model(windows_BT[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), windows_BT[:, 1:].flatten(), reduction=reduction)


def bits(model: nn.Module, windows_WT: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """Bits that the model needs for each byte of the windows but their first, in order: their mean is the bits per
    byte."""
    with torch.inference_mode():
        return torch.cat([loss(model, part_BT, "none") for part_BT in windows_WT.split(batch)]) / math.log(2)
