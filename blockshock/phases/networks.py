"""A whole network as a case, and with its row in the place of the layers that are meant."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from blockshock.errors import InputError
from blockshock.methods import Span
from blockshock.models import Network, build_network, compress
from blockshock.phases.case import Case, this_device
from blockshock.phases.hypotheses import NETWORK


@dataclass(frozen=True)
class NetworkCase(Case):
    """A row in a whole network, which is the ``workload``; N and K are those of the widest layer that it replaces, and
    B how many sequences or images a pass takes.

    Attributes:
        where: which of its layers are meant: one of ``models.WHERE``.
    """

    where: str = "blocks"

    @property
    def point(self) -> str:
        return "-".join([self.workload, self.where, f"B{self.B}", self.dtype])

    @property
    def place(self) -> list[str]:
        return [self.workload, self.where, f"B={self.B}", self.dtype]

    @property
    def network(self) -> Network:
        return build_network(self.workload)


def network_case(
    method: str, picks: dict[str, str], network: str, where: str, B: int, dtype: str, seed: int
) -> NetworkCase:
    """A row in a network. Builds nothing: its shapes are those of a skeleton."""
    linears = _meant(skeleton(network), build_network(network), where)
    widest = max(linears.values(), key=lambda linear: linear.in_features * linear.out_features)
    size = (widest.out_features, widest.in_features, B, dtype, seed)
    return NetworkCase(method, picks, network, *size, where=where)


def skeleton(network: str) -> nn.Module:
    """Its module without values."""
    with torch.device("meta"):
        return build_network(network).skeleton()


def _meant(model: nn.Module, network: Network, where: str) -> dict[str, nn.Linear]:
    """The layers that a row is to replace, by name: of one in several places the first."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and network.is_meant(name, where)
    }


@dataclass
class Compressed:
    """A network with its row, ready to be called.

    Attributes:
        model, call: it, and what it is called with.
        names: of the layers that are meant, each once.
        dense: of each of these in a dense pass, as often as it is called and in that order: its features and how many
            rows of x it meets.
        left: those that the row did not take, and why.
        likeness: of its outputs for unseen inputs to the dense network's; empty where weights are drawn, or none was
            asked for.
    """

    model: nn.Module
    call: tuple[Any, ...]
    names: list[str]
    dense: list[tuple[int, int, int]]
    left: dict[str, str]
    likeness: dict[str, float]

    def met(self, model: nn.Module | None = None) -> list[tuple[nn.Module, torch.Tensor]]:
        """The layers that are meant, as often as a pass calls them and in that order, each with what meets it then.

        Args:
            model: a copy of the network, of which they are.
        """
        model = self.model if model is None else model
        return [(model.get_submodule(name), x) for name, x in _met(model, self.names, self.call)]


def compressed(case: NetworkCase, judged: bool = True) -> Compressed:
    """Build the network, and put the row into it; ``dense_single`` is the network as it is.

    Args:
        judged: find its likeness too.

    Raises:
        InputError: the row can take none of the layers.
    """
    device, network, dtype = this_device(), case.network, case.torch_dtype
    model, call = network.build(dtype, device, case.seed), network.call(case.B, dtype, device, case.seed)
    linears = _meant(model, network, case.where)
    # Drawn weights have outputs that say nothing.
    outputs = network.judged(model, dtype, device) if judged and network.real else None
    dense = [
        (linears[name].in_features, linears[name].out_features, x.numel() // x.shape[-1])
        for name, x in _met(model, linears, call)
    ]
    left = {} if case.label == NETWORK else _compress(model, case, max(tokens for _, _, tokens in dense))
    found = {} if outputs is None else network.likeness(network.judged(model, dtype, device), outputs)
    return Compressed(model, call, list(linears), dense, left, found)


def _compress(model: nn.Module, case: NetworkCase, tokens: int) -> dict[str, str]:
    """Put the row into the network; what it left of what is meant, and why."""
    linears = _meant(model, case.network, case.where)
    meant = set(linears.values())
    row = "-".join([case.method, *case.picks.values()])
    calibration = case.network.calibration(case.torch_dtype, this_device(), case.seed)
    group = dist.group.WORLD if case.span == Span.GROUP else None
    found = compress(
        model, row, calibration, lambda name, linear: linear in meant, group=group, tokens=tokens, frozen=True
    )
    if not found.replaced:
        raise InputError(f"{row} takes none of the layers of {case.workload}: {found}")
    return {name: reason for name, reason in found.left.items() if name in linears}


def _met(model: nn.Module, names: Iterable[str], call: tuple[Any, ...]) -> list[tuple[str, torch.Tensor]]:
    """The layers of these names, as often as a pass calls them and in that order, each with what meets it then."""
    met: list[tuple[str, torch.Tensor]] = []
    with ExitStack() as stack:
        for name in names:
            layer = model.get_submodule(name)
            hook = layer.register_forward_pre_hook(lambda _, x, name=name: met.append((name, x[0])))
            stack.callback(hook.remove)
        model(*call)
    return met
