"""Whole networks: how long a pass takes with a row in the place of their linear layers, and what becomes of its output.

The row is built by ``compress``, block by block, to go forward alone. What its layers take by themselves is timed too,
on what met them in such a pass: how much of a pass is theirs says what no row can take away. The row ``dense_single``
is the network as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from blockshock.errors import BlockShockError
from blockshock.machine import held_bytes, memory
from blockshock.matrices import GeneratedWeights
from blockshock.measure import timing
from blockshock.methods import Layer, unsuitable
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.phases.builds import protocol_of_ranks
from blockshock.phases.case import this_device, unavailable
from blockshock.phases.compilers import why_not_compiled
from blockshock.phases.hypotheses import NETWORK
from blockshock.phases.networks import NetworkCase, compressed, skeleton


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


def obstacle(case: NetworkCase, backward: bool = False, builds: int = 2) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size.

    Args:
        builds: how many of it are held at once, what they are made of beside.
    """
    device, dtype = this_device(), case.torch_dtype
    try:
        if reason := case.network.unavailable(device):
            return f"{case.workload}: {reason}"
        widest = Layer(GeneratedWeights(case.N, case.K, dtype, device, case.seed), case.picks)
        if reason := unavailable(case, device, False) or unsuitable(case.method, widest):
            return reason
        model = skeleton(case.workload)
    except BlockShockError as error:
        return f"{case.method}: {error}"
    # The network, what the row makes of it, and what meets its layers; of more builds a network each, twice in a pair.
    needed = (2 * builds - 1) * sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    free = memory.free_bytes(device)
    return f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free" if needed > free else None


@torch.inference_mode()
def run(case: NetworkCase, mode: str, rounds: int, warmup: int, flush: bool) -> NetworkResult:
    """Build, compress and time the case on this rank; all ranks call it together.

    Raises:
        InputError: the row can take none of the layers.
    """
    device, ready = this_device(), compressed(case)
    model, call, met = ready.model, ready.call, ready.met()
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
        flops=sum(2 * tokens * K * N for K, N, tokens in ready.dense),
        replaced=0 if case.label == NETWORK else len(ready.names) - len(ready.left),
        left=ready.left,
        likeness=ready.likeness,
        algorithm=algorithms(met),
    )
    if mode == "cuda_graph":
        result.eager_samples = timing.time_call(lambda: model(*call), device, replace(protocol, mode="cuda_events"))
        result.not_compiled = _time_compiled(model, call, protocol, result)
    return result


def _time_compiled(
    model: nn.Module, call: tuple[Any, ...], protocol: timing.Protocol, result: NetworkResult
) -> str | None:
    """Add the samples of the compiled network; or say why there are none: that is no fault of the row's."""
    try:
        compiled = torch.compile(model, dynamic=False)
        result.alone["compiled"] = timing.time_call(lambda: compiled(*call), this_device(), protocol)
    except Exception as error:  # whatever a compiler raises
        return why_not_compiled(error)
    finally:
        torch.compiler.reset()
    return None


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    packed = [layer.layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    return [*model.parameters(), *model.buffers(), *(tensor for one in packed for tensor in one.tensors())]


def _weight_bytes(layer: nn.Module) -> int:
    return layer.layer.weight_bytes() if isinstance(layer, FrozenLinear) else held_bytes(layer.parameters())


def algorithms(met: list[tuple[nn.Module, torch.Tensor]]) -> str:
    """Kernels and algorithms that ran in these layers."""
    names = (layer.layer.algorithm if isinstance(layer, FrozenLinear) else "dense" for layer, _ in met)
    return " | ".join(dict.fromkeys(names))
