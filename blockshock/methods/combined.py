"""Methods whose ranks agree on y, and on grad_X in backward, in the way that was picked, or that is fastest."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from blockshock import kernels
from blockshock.errors import InputError
from blockshock.kernels import AlgorithmCache, are_seconds, measured_on
from blockshock.machine import (
    Combine,
    Entry,
    Exit,
    Group,
    aligner,
    build_combine,
    combine_of,
    combines,
    most_elements,
    slowest_of_ranks,
)
from blockshock.matrices import generator
from blockshock.measure import Work, timing
from blockshock.methods.base import Method
from blockshock.methods.layer import Layer

USUAL = "nccl"
AUTO = "auto"
ROUNDS = 15
"""By which auto chooses."""


_measured = AlgorithmCache("combine", fits=are_seconds)


class Combined(Method):
    """A method that picks how its ranks combine. A subclass calls ``build`` once it knows its rows and columns."""

    entry: Entry = Entry()
    _exit: Exit = Exit()
    _combine = USUAL
    _shared_bytes = 0

    def build(self, layer: Layer) -> None:
        """Hold its part of a layer, and agree; all ranks call it together. Raises as ``agree`` does."""
        self.hold_own(layer)
        self.agree(layer)

    def hold_own(self, layer: Layer) -> None:
        """Hold what this rank multiplies by."""
        raise NotImplementedError

    def conjugates(self, combine: Combine) -> tuple[Entry, Exit]:
        """How its product takes x and gives y."""
        raise NotImplementedError

    @property
    def exit(self) -> Exit:
        return self._exit

    def agree(self, layer: Layer) -> None:
        """Decide how; all ranks call it together.

        Raises:
            InputError: what was picked is not for so many ranks or tokens, or these GPUs cannot do it.
        """
        group = self.group
        if group.size() == 1:
            return
        picked = layer.pick("combine") or USUAL
        if picked == AUTO:
            self._take_fastest(layer, group)
        elif reason := self._why_not(picked, layer, group):
            raise InputError(f"combine {picked}: {reason}")
        else:
            self._take(picked, layer, group)

    @property
    def _fuses(self) -> bool:
        """Whether what multiplies can sum over the ranks itself."""
        return all(packed.fuses for packed in self.packings())

    def _why_not(self, spec: str, layer: Layer, group: Group) -> str | None:
        kind, _ = combine_of(spec)
        if reason := kind.unavailable(self.device, self.dtype):
            return reason
        if kind.is_fused and not self._fuses:
            return f"the sum is the kernel's, and {self.algorithm} has none"
        return combines.unsuitable(spec, group.size(), layer.tokens)

    def _take(self, spec: str, layer: Layer, group: Group) -> None:
        elements = most_elements(layer.tokens, max(self.N, self.K) if layer.both_ways else self.N)
        combine = build_combine(spec, group, elements, self.dtype, self.device)
        self._combine, self._shared_bytes = spec, combine.held_bytes(elements * self.dtype.itemsize, group.size())
        self.entry, self._exit = self.conjugates(combine)

    def _ways(self, layer: Layer, group: Group, fuses: bool) -> list[str]:
        """Of which auto takes the fastest."""
        return combines.candidates(group.size(), layer.tokens, self.device, self.dtype, fuses)

    def _take_fastest(self, layer: Layer, group: Group) -> None:
        """Of what adds up right, and of what was the fastest where it was measured what can be asked here."""
        specs = self._ways(layer, group, self._fuses)
        seconds = self._seconds(specs, layer, group) if len(specs) > 1 else [0.0]
        for _, spec in sorted(zip(seconds, specs, strict=True), key=lambda pair: pair[0]):
            if self._can_take(spec, layer, group):
                return

    def _can_take(self, spec: str, layer: Layer, group: Group) -> bool:
        """Take it, if all ranks can."""
        reachable = True
        try:
            self._take(spec, layer, group)
        except InputError:
            reachable = False
        (lost,) = slowest_of_ranks([float(not reachable)], self.device, group)
        return not lost

    def _seconds(self, specs: list[str], layer: Layer, group: Group) -> list[float]:
        """What a call takes in each way by what multiplies now; infinitely many of what cannot be asked."""
        passes = f"backward={layer.both_ways} trained={layer.training is not None}"
        shape = f"{self._decides(layer)} {super().algorithm} {passes}"
        measure = partial(self._measure, specs, layer, group)
        return self._agreed(f"{shape} of {' '.join(specs)}", len(specs), measure, group)

    def _decides(self, layer: Layer) -> str:
        """All of a layer that decides how fast the ranks' products are, in words."""
        return f"N{self.N} K{self.K} B{layer.tokens} {self.dtype}"

    def _agreed(self, what: str, count: int, measure: Callable[[], list[float]], group: Group) -> list[float]:
        """So many seconds, measured once on a machine, by which ranks decide together; all of them call it together."""
        folders = Path(combines.__file__).parent, Path(kernels.__file__).parent
        where = " ".join(measured_on(self.device, folder) for folder in folders)
        queues = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "")  # by which streams run beside each other, or do not
        key = f"{where} {type(self).__name__} G{group.size()} queues={queues} {what}"
        # What rank 0 remembers, for all or none must measure.
        known = (_measured.known(key) if group.rank() == 0 else None) or []
        seconds = slowest_of_ranks(known if len(known) == count else [0.0] * count, self.device, group)
        if not all(seconds):
            seconds = measure()
            if group.rank() == 0 and math.isfinite(max(seconds)):
                _measured.keep(key, seconds)
        return seconds

    def _measure(self, specs: list[str], layer: Layer, group: Group) -> list[float]:
        """Of a call, forward or both ways; infinitely many of what cannot be asked.

        A round goes through all of them: under load a GPU's clock falls by a tenth within a second, and who came first
        would be ahead. A round is as long as on its slowest rank, which need not be the same one each time.
        """
        calls = self._calls(specs, layer, group)
        mode = "cuda_graph" if self.device.type == "cuda" else "sync"
        protocol = timing.Protocol(mode, ROUNDS, warmup=3, align=aligner(self.device, group))
        samples = timing.time_calls(list(calls.values()), self.device, protocol)
        medians = [timing.percentile(slowest_of_ranks(rounds, self.device, group), 50) for rounds in samples]
        found = dict(zip(calls, medians, strict=True))
        return [found.get(spec, math.inf) for spec in specs]

    def _calls(self, specs: list[str], layer: Layer, group: Group) -> dict[str, timing.Call]:
        """By spec; without what these GPUs cannot do, and what gives another y than the first, which is right."""
        stream = generator(self.device, 0, 4)
        x_BK = torch.randn(layer.tokens, self.K, device=self.device, generator=stream).to(self.dtype)
        x_BK.requires_grad_(layer.both_ways)
        calls, right = {}, None
        for spec in specs:
            if not self._can_take(spec, layer, group):
                continue
            y_BN = self.multiply(x_BK, self.exit).detach()
            right = y_BN if right is None else right
            off = (y_BN.float() - right.float()).norm() / right.float().norm()
            is_right = bool(off <= group.size() * torch.finfo(self.dtype).eps)
            (wrong,) = slowest_of_ranks([float(not is_right)], self.device, group)
            if not wrong:
                calls[spec] = self._call(x_BK)
        return calls

    def _call(self, x_BK: torch.Tensor) -> timing.Call:
        """In the way that is taken now; both ways with the gradients of what is trained, for autograd asks a layer for
        all that it could give."""
        entry, exit = self.entry, self._exit

        def call() -> None:
            self.entry, self._exit = entry, exit
            y_BN = self.multiply(x_BK, self.exit)
            if y_BN.requires_grad:
                torch.autograd.grad(y_BN, x_BK, torch.ones_like(y_BN))

        return call

    def work(self, tokens: int, backward: bool = False) -> dict[str, Work]:
        """As a method's; ``hidden`` is communication that has no time of its own, which counts for the whole alone."""
        found = super().work(tokens, backward)
        if "communication" in found and combine_of(self._combine)[0].is_hidden:
            found["hidden"] = found.pop("communication")
        return found

    @property
    def shared_bytes(self) -> int:
        return self._shared_bytes

    @property
    def algorithm(self) -> str:
        said = super().algorithm
        return said if self._combine == USUAL else f"{said}, combined by {self._combine}"
