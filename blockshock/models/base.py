"""What a network is: a whole model to try rows in, with what it is called with, and what its outputs are judged by.

A network is one class registered in NETWORKS; nothing else needs to know of it. (A *model* of ``matrices/models.py`` is
the shapes of one's linear layers, for ``--layers``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.registry import Registry, check_range

Call = tuple[Any, ...]
"""Arguments of a network."""
STD = 0.02
"""Of weights that are drawn."""


class Network:
    """A whole model. What its ``__init__`` takes is the user's to set: ``name:blocks=2``.

    Attributes:
        batches: how many sequences or images a call has, by device type.
        mlp: last parts of the names of the linear layers of its feed-forward parts.
        real: its weights are trained ones, so that what is lost of its outputs says something.
    """

    batches: ClassVar[dict[str, tuple[int, ...]]] = {"cpu": (1,), "cuda": (64,)}
    mlp: ClassVar[tuple[str, ...]]
    real: ClassVar[bool] = False

    def unavailable(self, device: torch.device) -> str | None:
        """None, or one sentence that says what it lacks there."""
        return None

    def skeleton(self) -> nn.Module:
        """The module, its parameters without values. What rows replace is in its ``blocks``."""
        raise NotImplementedError(f"{type(self).__name__} has no skeleton()")

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
        """It with values, in evaluation mode; here they are drawn, norms are ones and biases zeros."""
        with torch.device("meta"):
            model = self.skeleton()
        model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
        stream = torch.Generator(device).manual_seed(seed)
        for name, held in model.named_parameters():
            if held.ndim > 1:
                held.normal_(0, STD, generator=stream)
            else:
                held.fill_(name.endswith("weight"))
        return model

    def call(self, B: int, dtype: torch.dtype, device: torch.device, seed: int) -> Call:
        """What a timed pass is called with, of a batch of B."""
        raise NotImplementedError(f"{type(self).__name__} has no call(B, dtype, device, seed)")

    def calibration(self, dtype: torch.dtype, device: torch.device, seed: int) -> list[Call]:
        """What pruners that look at inputs are calibrated with; here one call that is not the timed one."""
        return [self.call(1, dtype, device, seed + 1)]

    def unseen(self, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
        """What a network with real weights is called with to be judged; none of it is in the calibration."""
        raise NotImplementedError(f"{type(self).__name__} has no unseen(dtype, device)")

    def judged(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """What is kept of its outputs for what is unseen, to be set beside that of the dense network; here all."""
        return torch.cat([model(*call) for call in self.unseen(dtype, device)])

    def likeness(self, found: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
        """What the one says beside the other, by name: NaN where it holds no number."""
        raise NotImplementedError(f"{type(self).__name__} has no likeness(found, dense)")

    def is_meant(self, name: str, where: str) -> bool:
        """Whether rows replace the linear layer of that name.

        Args:
            where: all linear layers of its ``blocks``, or those of their ``mlp`` alone.
        """
        last = name.rpartition(".")[2]
        return name.startswith("blocks.") and (where == "blocks" or last in self.mlp)


NETWORKS: Registry[type[Network]] = Registry("network")
WHERE = ("blocks", "mlp")


def build_network(spec: str) -> Network:
    """The network that a spec such as ``vit_b:blocks=2`` names.

    Raises:
        UnknownName, InputError: there is none of that name, or it takes no such parameter, or not such a value.
    """
    kind, parameters = NETWORKS.resolve(spec)
    return kind(**parameters)


def check_width(width: int, unit: int, **counts: int) -> None:
    """Raises InputError unless a width is a multiple of the unit, and counts are at least 1; it names the first."""
    check_range(1, 1 << 16, width=width, **counts)
    if width % unit:
        below = max(width // unit, 1) * unit
        raise InputError(
            f"width must be a multiple of {unit}, got width={width}; the nearest are {below} and {below + unit}"
        )
