"""Train the byte-level language model: the weights of the network ``lm``.

Makes ``lm.safetensors`` (float16, 6.6 MB) and ``lm.json``, which says of what, where and how they were made, in
``blockshock/models/data``. How to run, in a checkout, once ``collect_text.py`` has made the corpus:

    PYTHONPATH=. python tests/data/train_lm.py --corpus lm_corpus.txt

It needs torch, numpy, safetensors and filelock, and some minutes on one GPU. The corpus can be made on another machine:
its hash is checked. A seed makes the same weights on the same GPU with the same torch. Without a GPU, ``--steps 1500
--batch 8 --context 256`` come to 1.97 bits per byte in twenty minutes of one core.

AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradients clipped to a norm of 1, two hundredths of the steps of
warm-up and then half a cosine down to a tenth; autocast to bf16. What is held out is looked at, never chosen by.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record_minilm import write
from torch import nn

from blockshock.machine import environment
from blockshock.models import text
from blockshock.models.byte_gpt import ByteGPT

DATA = Path(text.__file__).parent / "data"
LOOKS, GLANCE = 20, 32
"""How often what is held out is looked at during training, and how many windows of it."""


def train(model: ByteGPT, text_N: torch.Tensor, held_out_WT: torch.Tensor, plan: argparse.Namespace) -> list[Any]:
    """Train it in place.

    Returns:
        The curve: of some steps their number, seconds so far, and bits per byte of the last batch and of the held-out
        windows.
    """
    stream, curve, start = torch.Generator().manual_seed(plan.seed), [], time.perf_counter()
    matrices = [held for held in model.parameters() if held.ndim > 1]
    others = [held for held in model.parameters() if held.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, plan.steps))
    for step in range(1, plan.steps + 1):
        batch_BT = text.drawn_windows(text_N, plan.batch, model.context, stream)
        with torch.autocast(text_N.device.type, torch.bfloat16):
            loss = text.loss(model, batch_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % max(plan.steps // LOOKS, 1) == 0:
            held_out = text.bits(model, held_out_WT[:GLANCE]).mean().item()
            told = [step, round(time.perf_counter() - start, 1), loss.item() / math.log(2), held_out]
            curve.append([round(value, 4) for value in told])
            print("step {}, {} s: {} bits per byte, held out {}".format(*curve[-1]), flush=True)
    return curve


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate."""
    warm = max(steps // 50, 1)
    return (step + 1) / warm if step < warm else 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(steps - warm, 1))


def main(arguments: list[str] | None = None) -> None:
    """Train, round to float16, judge what that left, and write both files."""
    given = sys.argv[1:] if arguments is None else arguments
    plan = parsed(given)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    text_N = text.corpus(plan.corpus).to(plan.device)
    model = ByteGPT(plan.width, plan.layers, plan.heads, plan.context).draw(plan.seed).to(plan.device)
    held_out_WT = text.windows(text.committed_text(text.HELD_OUT), plan.context).to(plan.device)
    curve = train(model, text_N, held_out_WT, plan)
    sizes = {name: str(getattr(plan, name)) for name in ("width", "layers", "heads", "context")}
    tensors = {name: held.detach().cpu().half() for name, held in model.state_dict().items()}
    plan.to.mkdir(parents=True, exist_ok=True)
    write(plan.to / "lm.safetensors", tensors, sizes)
    model.load_state_dict(tensors)  # in the parameters' own dtype
    bits = text.bits(model, held_out_WT).mean().item()
    about = {
        "command": " ".join(["python tests/data/train_lm.py", *(Path(word).name for word in given)]),
        **{name: value for name, value in vars(plan).items() if name not in ("corpus", "to")},
        "hardware": torch.cuda.get_device_name() if plan.device == "cuda" else environment.cpu_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "corpus": text.about_texts()["files"][text.CORPUS],
        "weights": hashlib.sha256((plan.to / "lm.safetensors").read_bytes()).hexdigest(),
        "parameters": sum(held.numel() for held in model.parameters()),
        "bytes_trained_on": plan.steps * plan.batch * plan.context,
        "held_out_bits_per_byte": round(bits, 4),
        "curve": ["step, seconds, bits per byte, those held out", *(" ".join(map(str, told)) for told in curve)],
    }
    (plan.to / "lm.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{plan.to / 'lm.safetensors'}: {bits:.4f} bits per byte of what is held out")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What to train on, how long, and what."""
    parser = argparse.ArgumentParser(description="Train the byte-level language model.")
    parser.add_argument("--corpus", type=Path, required=True, help="what tests/data/collect_text.py made")
    parser.add_argument("--to", type=Path, default=DATA, help="the folder to write to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    for name, usual in (("steps", 6000), ("batch", 64), ("context", 512), ("width", 256), ("layers", 4), ("heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
