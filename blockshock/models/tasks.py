"""What recipes of sparse training are compared on: a small model, what it is trained on, and what is held out.

A task is one class registered in TASKS. What it loses is counted in bits a prediction, of a byte or of an image.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from blockshock.models import text
from blockshock.models.byte_gpt import ByteGPT
from blockshock.registry import Registry
from blockshock.training.recipes.activation import ACTS
from blockshock.training.recipes.blocks import check_choice

Batch = tuple[torch.Tensor, ...]


class Task:
    """A model, and what it learns. Each of the numbers below is by device type.

    Attributes:
        unit: what is predicted.
        steps: of training, unless said otherwise.
        lr: the highest rate, of AdamW.
        margin: bits a prediction that a recipe may lose to dense training and still be said to learn as well.
        learnt: bits by which the loss on what is held out must fall, else nothing was learned.
        gib: of memory that training takes at most.
        mlp: names of the two layers of a feed-forward part, which a module holds with ``act``, what is between them.

    Args:
        act: the activation function of the feed-forward parts: gelu, relu, or relu2, its square.
    """

    unit: ClassVar[str]
    steps: ClassVar[dict[str, int]]
    lr: ClassVar[dict[str, float]]
    margin: ClassVar[float]
    learnt: ClassVar[float]
    gib: ClassVar[dict[str, float]]
    mlp: ClassVar[tuple[str, ...]] = ("up", "down")

    def __init__(self, act: str = "gelu") -> None:
        check_choice("act", act, tuple(ACTS))
        self.act = act

    def tokens(self, device_type: str) -> int:
        """Predictions of a step: rows of x that a layer meets in it."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens(device_type)")

    def skeleton(self, device_type: str) -> nn.Module:
        """The model before its weights are drawn."""
        raise NotImplementedError(f"{type(self).__name__} has no skeleton(device_type)")

    def draw(self, model: nn.Module, seed: int) -> None:
        """Give it the weights that training begins with, drawn on the CPU: a seed gives the same bits everywhere."""
        raise NotImplementedError(f"{type(self).__name__} has no draw(model, seed)")

    def load(self, device: torch.device, corpus: str | None) -> str:
        """Hold the data on a device, and say what they are.

        Args:
            corpus: the file of the collected corpus; None for what is committed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no load(device, corpus)")

    def batch(self, stream: torch.Generator) -> Batch:
        """What a step is made of, of the same shapes at each; ``stream`` is on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no batch(stream)")

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean, in nats."""
        raise NotImplementedError(f"{type(self).__name__} has no loss(model, batch)")

    def bits(self, model: nn.Module) -> float:
        """Mean bits a prediction of what is held out."""
        raise NotImplementedError(f"{type(self).__name__} has no bits(model)")

    def is_meant(self, name: str) -> bool:
        """Whether a recipe trains the linear layer of that name: those of feed-forward parts, as its papers do."""
        return name.rpartition(".")[2] in self.mlp


TASKS: Registry[type[Task]] = Registry("task")


def build_task(spec: str) -> Task:
    """The task that a spec names.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter.
    """
    kind, parameters = TASKS.resolve(spec)
    return kind(**parameters)


@TASKS.register("text")
class Text(Task):
    """The next byte of English, by a ``ByteGPT``: of 25 million parameters on a GPU, and of 0.1 million on a CPU."""

    unit = "byte"
    steps: ClassVar = {"cpu": 40, "cuda": 300}
    lr: ClassVar = {"cpu": 4e-3, "cuda": 1e-3}
    margin, learnt = 0.02, 1.5
    gib: ClassVar = {"cpu": 0.5, "cuda": 12.0}
    sizes: ClassVar = {
        "cpu": {"width": 64, "layers": 2, "heads": 2, "context": 64},
        "cuda": {"width": 512, "layers": 8, "heads": 8, "context": 512},
    }
    batches: ClassVar = {"cpu": 8, "cuda": 64}
    judged: ClassVar = {"cpu": 4 << 10, "cuda": 64 << 10}

    def tokens(self, device_type: str) -> int:
        return int(self.batches[device_type] * self.sizes[device_type]["context"])

    def skeleton(self, device_type: str) -> nn.Module:
        return ByteGPT(**self.sizes[device_type], act=self.act)

    def draw(self, model: nn.Module, seed: int) -> None:
        assert isinstance(model, ByteGPT)
        model.draw(seed)

    def load(self, device: torch.device, corpus: str | None) -> str:
        self._context = self.sizes[device.type]["context"]
        self._B = self.batches[device.type]
        read_N = text.committed_text(text.CALIBRATION) if corpus is None else text.corpus(corpus)
        held_N = text.committed_text(text.HELD_OUT)[: self.judged[device.type]]
        self._text_N, self._held_WT = read_N.to(device), text.windows(held_N, self._context).to(device)
        return f"{text.CALIBRATION if corpus is None else text.CORPUS}, {len(read_N)} bytes"

    def batch(self, stream: torch.Generator) -> Batch:
        return (text.drawn_windows(self._text_N, self._B, self._context, stream),)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return text.loss(model, batch[0])

    def bits(self, model: nn.Module) -> float:
        return text.bits(model, self._held_WT).mean().item()
