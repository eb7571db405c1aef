"""Methods whose ranks agree on y, and on grad_X in backward, in the way that was picked, or that is fastest."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from blockshock.errors import InputError
from blockshock.kernels import AlgorithmCache, are_seconds, measured_on
from blockshock.machine import (
    COMBINES,
    Combine,
    Entry,
    Exit,
    Group,
    aligner,
    build_combine,
    combines,
    slowest_of_ranks,
)
from blockshock.matrices import generator
from blockshock.measure import timing
from blockshock.methods.base import Method
from blockshock.methods.layer import Layer

USUAL = "nccl"
AUTO = "auto"
ROUNDS = 15
"""By which auto chooses."""


_measured = AlgorithmCache("combine", fits=are_seconds)


class Combined(Method):
    """A method that picks how its ranks combine. A subclass calls ``agree`` once it can multiply."""

    entry: Entry = Entry()
    _exit: Exit = Exit()
    _combine = USUAL
    _shared_bytes = 0

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
            self._fastest(layer, group)
        elif reason := self._why_not(picked, layer, group):
            raise InputError(f"combine {picked}: {reason}")
        else:
            self._take(picked, layer, group)

    @property
    def _fuses(self) -> bool:
        """Whether what multiplies can sum over the ranks itself."""
        return all(packed.fuses for packed in self.packings())

    def _why_not(self, spec: str, layer: Layer, group: Group) -> str | None:
        if COMBINES.resolve(spec, skip=4)[0].is_fused and not self._fuses:
            return f"the sum is the kernel's, and {self.algorithm} has none"
        return combines.unsuitable(spec, group.size(), layer.tokens)

    def _take(self, spec: str, layer: Layer, group: Group) -> None:
        elements = layer.tokens * (max(self.N, self.K) if layer.both_ways else self.N)
        combine = build_combine(spec, group, elements, self.dtype, self.device)
        self._combine, self._shared_bytes = spec, combine.held_bytes(elements * self.dtype.itemsize)
        self.entry, self._exit = self.conjugates(combine)

    def _fastest(self, layer: Layer, group: Group) -> None:
        """Take what is fastest of what adds up right, each measured once on a machine; ranks decide together."""
        specs = combines.candidates(group.size(), layer.tokens, self.device, self.dtype, self._fuses)
        if len(specs) > 1:
            where = measured_on(self.device, Path(combines.__file__).parent)
            shape = f"N{self.N} K{self.K} B{layer.tokens} {self.dtype} {self.algorithm} backward={layer.both_ways}"
            key = f"{where} {type(self).__name__} G{group.size()} {shape} of {' '.join(specs)}"
            # What rank 0 remembers, for all or none must measure.
            known = _measured.known(key) if group.rank() == 0 else None
            seconds = slowest_of_ranks(known or [0.0] * len(specs), self.device, group)
            if not all(seconds):
                seconds = self._measure(specs, layer, group)
                if group.rank() == 0 and math.isfinite(max(seconds)):
                    _measured.keep(key, seconds)
            specs = [specs[seconds.index(min(seconds))]]
        self._take(specs[0], layer, group)

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
            reachable = True
            try:
                self._take(spec, layer, group)
            except InputError:
                reachable = False
            (lost,) = slowest_of_ranks([float(not reachable)], self.device, group)
            if lost:
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
        """In the way that is taken now."""
        entry, exit = self.entry, self._exit

        def call() -> None:
            self.entry, self._exit = entry, exit
            y_BN = self.multiply(x_BK, self.exit)
            if y_BN.requires_grad:
                torch.autograd.grad(y_BN, x_BK, torch.ones_like(y_BN))

        return call

    @property
    def shared_bytes(self) -> int:
        return self._shared_bytes

    @property
    def algorithm(self) -> str:
        said = super().algorithm
        return said if self._combine == USUAL else f"{said}, combined by {self._combine}"
