"""What command lines resolve to on a machine that has as many GPUs as a test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from blockshock.methods import METHODS
from blockshock.plugin.points import Points
from blockshock.plugin.settings import Settings
from blockshock.plugin.settings import resolve as resolve_settings

Resolve = Callable[..., Settings]

CPU_DEFAULTS = Settings(
    device="cpu",
    ranks=2,
    points=Points(((256, 256), (512, 512)), (4, 16)),
    training_points=Points(((256, 256),), (16,)),
    dtypes=("bf16",),
    methods=METHODS.names(),
    axes={
        "kernel": ("auto", "gathered"),
        "mask": None,
        "pruner": None,
        "storage": ("compressed", "masked"),
        "combine": None,
        "format": None,
        "block_kernel": None,
        "block_mask": None,
        "recipe": None,
    },
    optimizers=("sgd", "adamw"),
    workloads=("gaussian", "recorded"),
    timing="sync",
    rounds=5,
    warmup=1,
    flush=True,
    seed=0,
    cover="pairs",
    keep_full_weight=False,
    profile=False,
    rank_timeout=300,
    networks=("minilm",),
)
GPU_DEFAULTS = replace(
    CPU_DEFAULTS,
    device="cuda",
    points=Points(tuple((N, N) for N in (4096, 8192, 16384, 40960)), (16, 64, 256, 1024)),
    training_points=Points(tuple((N, N) for N in (4096, 8192, 16384)), (1024, 4096)),
    axes=CPU_DEFAULTS.axes | {"kernel": ("auto", "cusparselt", "cutlass", "gathered", "streamed")},
    timing="cuda_graph",
    rounds=100,
    warmup=10,
    networks=("minilm", "lm", "vit_b", "vit_l", "llama3-8b", "llama3-8b-decode"),
)


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    say_gpus(monkeypatch, 0)


def say_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def resolve(pytester: pytest.Pytester) -> Resolve:
    """The settings of a command line, as pytest parses it with the plugin loaded."""

    def settings(*arguments: str) -> Settings:
        return resolve_settings(pytester.parseconfig("-p", "blockshock.plugin", *arguments))

    return settings
