"""Whole networks: how long a pass takes with a row in the place of their linear layers, and what becomes of its output.

The row is built by ``compress``, block by block, to go forward alone. What its layers take by themselves is timed too,
on what met them in such a pass: how much of a pass is theirs says what no row can take away. The row ``dense_single``
is the network as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from blockshock.errors import BlockShockError, InputError
from blockshock.machine import held_bytes, memory
from blockshock.matrices import GeneratedWeights
from blockshock.measure import timing
from blockshock.methods import Layer, Span, method_of
from blockshock.models import Network, build_network, compress
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.phases.builds import protocol_of_ranks
from blockshock.phases.case import Case, this_device, unavailable

DENSE = "dense_single"
"""The label of the row that is the network as it is; in a format it is another."""


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
    linears = _meant(_skeleton(network), build_network(network), where)
    widest = max(linears.values(), key=lambda linear: linear.in_features * linear.out_features)
    size = (widest.out_features, widest.in_features, B, dtype, seed)
    return NetworkCase(method, picks, network, *size, where=where)


def _skeleton(network: str) -> nn.Module:
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
class NetworkResult:
    """What one rank measured. Times in seconds, sizes in bytes.

    Attributes:
        samples: of each round of a pass, in the mode asked for.
        eager_samples: of eager calls, launch included; empty unless the mode is cuda_graph.
        alone: samples of the ``linears`` that are meant by themselves, and of the ``compiled`` network, in that mode.
        not_compiled: why the latter is missing, where it was tried.
        weight_bytes: of the layers that are meant, as they are held.
        steady_bytes: held at most during a pass, all weights included.
        flops: of these layers in a dense network.
        replaced, left: how many layers the row took, and why it left others.
        likeness: of the outputs for unseen inputs; empty where weights are drawn, whose outputs say nothing.
        algorithm: kernels and algorithms that ran.
    """

    samples: list[float]
    eager_samples: list[float]
    alone: dict[str, list[float]]
    not_compiled: str | None
    weight_bytes: int
    steady_bytes: int
    flops: int
    replaced: int
    left: dict[str, str]
    likeness: dict[str, float]
    algorithm: str


def obstacle(case: NetworkCase, backward: bool = False, builds: int = 1) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size."""
    device, dtype = this_device(), case.torch_dtype
    try:
        if reason := case.network.unavailable(device):
            return f"{case.workload}: {reason}"
        widest = Layer(GeneratedWeights(case.N, case.K, dtype, device, case.seed), case.picks)
        if reason := unavailable(case, device, False) or method_of(case.method)[0].unsuitable(widest):
            return reason
        model = _skeleton(case.workload)
    except BlockShockError as error:
        return f"{case.method}: {error}"
    # The network, what the row makes of it, and what meets its layers.
    needed = 3 * sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    free = memory.free_bytes(device)
    return f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free" if needed > free else None


@torch.inference_mode()
def run(case: NetworkCase, mode: str, rounds: int, warmup: int, flush: bool) -> NetworkResult:
    """Build, compress and time the case on this rank; all ranks call it together.

    Raises:
        InputError: the row can take none of the layers.
    """
    device, network, dtype = this_device(), case.network, case.torch_dtype
    model, call = network.build(dtype, device, case.seed), network.call(case.B, dtype, device, case.seed)
    dense = network.judged(model, dtype, device) if network.real else None
    linears = _meant(model, network, case.where)
    rows = [(linears[name], x.numel() // x.shape[-1]) for name, x in _met(model, linears, call)]
    left = {} if case.label == DENSE else _compress(model, case, max(count for _, count in rows))
    met = [(model.get_submodule(name), x) for name, x in _met(model, linears, call)]
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)
    with memory.peak_bytes(device) as steady:
        model(*call)
    # Round by round in turn: their ratio is asked for.
    samples, alone = timing.time_calls([lambda: model(*call), lambda: [layer(x) for layer, x in met]], device, protocol)
    result = NetworkResult(
        samples=samples,
        eager_samples=[],
        alone={"linears": alone} if alone else {},
        not_compiled=None,
        weight_bytes=sum(_weight_bytes(layer) for layer in dict.fromkeys(layer for layer, _ in met)),
        steady_bytes=held_bytes(_tensors(model)) + steady[0],
        flops=sum(2 * count * layer.in_features * layer.out_features for layer, count in rows),
        replaced=0 if case.label == DENSE else len(linears) - len(left),
        left=left,
        likeness={} if dense is None else network.likeness(network.judged(model, dtype, device), dense),
        algorithm=" | ".join(dict.fromkeys(_algorithm(layer) for layer, _ in met)),
    )
    if mode == "cuda_graph":
        result.eager_samples = timing.time_call(lambda: model(*call), device, replace(protocol, mode="cuda_events"))
        result.not_compiled = _time_compiled(model, call, protocol, result)
    return result


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


def _time_compiled(
    model: nn.Module, call: tuple[Any, ...], protocol: timing.Protocol, result: NetworkResult
) -> str | None:
    """Add the samples of the compiled network; or say why there are none: that is no fault of the row's."""
    try:
        compiled = torch.compile(model, dynamic=False)
        result.alone["compiled"] = timing.time_call(lambda: compiled(*call), this_device(), protocol)
    except Exception as error:  # whatever a compiler raises
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        torch.compiler.reset()
    return None


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    packed = [layer.layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    return [*model.parameters(), *model.buffers(), *(tensor for one in packed for tensor in one.tensors())]


def _weight_bytes(layer: nn.Module) -> int:
    return layer.layer.weight_bytes() if isinstance(layer, FrozenLinear) else held_bytes(layer.parameters())


def _algorithm(layer: nn.Module) -> str:
    return layer.layer.algorithm if isinstance(layer, FrozenLinear) else "dense"
