"""What `overlap` does on two streams of each rank is in order: what writes memory that others touch waits for them.

On a CPU all runs one after another, and a wait that is missing changes nothing. So what each stream is given is
recorded, with all that it reads and writes, and with what waits for what; and of every two steps that touch the same
bytes, one of them writing, a chain of waits has to lead from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_peers import FakeWorkspace, faked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blockshock.machine import Part, build_combine
from blockshock.ranks import Ranks

MAIN, SIDE = 0, 1
CPU = torch.device("cpu")
Touch = tuple[str, int, int, bool]
"""Whose memory, from which byte to which, and whether it is written."""


@dataclass
class Step:
    """Something that a stream is given: what it touches, what it comes after, and whether all ranks meet in it."""

    touches: list[Touch] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    is_barrier: bool = False


class Recording(FakeWorkspace):
    """Steps of this rank, in the order in which it gave them."""

    steps: list[Step]
    held: list[torch.Tensor]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stream, self.last = MAIN, [[], []]
        type(self).steps, type(self).held, type(self).newest = [], [], self  # type: ignore[attr-defined]

    def step(self, **more: Any) -> None:
        self.steps.append(Step(after=self.last[self.stream], **more))
        self.last[self.stream] = [len(self.steps) - 1]

    def barrier(self) -> None:
        self.step(is_barrier=True)
        super().barrier()

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.last[SIDE] = [*self.last[SIDE], *self.last[MAIN]]
        self.stream = SIDE
        yield
        self.stream = MAIN

    def mark(self) -> list[int]:
        return list(self.last[SIDE])

    def wait_for(self, mark: list[int]) -> None:
        self.last[self.stream] = [*self.last[self.stream], *mark]

    def wait(self) -> None:
        self.wait_for(self.last[SIDE])


class Touched(TorchDispatchMode):
    """Records the bytes that each operation reads and writes."""

    def __init__(self, workspace: Recording) -> None:
        super().__init__()
        self._workspace = workspace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(one, (kwargs or {})[one.name]) for one in func._schema.arguments if one.name in (kwargs or {})]
        if any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns):
            return out  # a view touches nothing
        touches = [
            self._touch(tensor, bool(argument.alias_info and argument.alias_info.is_write))
            for argument, value in given
            for tensor in tree_leaves(value)
            if isinstance(tensor, torch.Tensor)
        ]
        if touches:
            self._workspace.step(touches=touches)
        return out

    def _touch(self, tensor: torch.Tensor, writes: bool) -> Touch:
        space = self._workspace
        space.held.append(tensor)  # so that no other comes to lie there
        start, size = tensor.data_ptr(), _span(tensor)
        for rank, memory in enumerate(space._memories):
            if 0 <= start - memory.data_ptr() < memory.nbytes:
                first = start - memory.data_ptr()
                return f"peer {rank}", first, first + size, writes
        return f"own of {space.rank}", start, start + size, writes


def _span(tensor: torch.Tensor) -> int:
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def _steps(spec: str, call: str, tokens: int, features: int, skip: str | None) -> list[Step]:
    """Of two calls one after the other, on this rank; without what a wait, or a barrier, comes to."""
    group = dist.group.WORLD
    with faked(most_bytes=1 << 14, made=Recording), pytest.MonkeyPatch.context() as patch:
        combine = build_combine(spec, group, tokens * features, torch.float32, CPU)
        if skip is not None:
            patch.setattr(Recording, skip, lambda *_: None)
        part_BF = torch.full((tokens, features), float(group.rank() + 1))
        with Touched(Recording.newest):  # type: ignore[attr-defined]
            for _ in range(2):
                found = getattr(combine, call)(Part.of(part_BF))
                found = found() if call.startswith("start") else found
    total = sum(range(1, group.size() + 1))
    assert skip is not None or "sum" not in call or bool((found == total).all())
    return Recording.steps


def races(of_ranks: list[list[Step]]) -> list[str]:
    """Pairs of steps that touch the same bytes, one of them writing, neither after the other."""
    before: list[list[int]] = [[0] * len(steps) for steps in of_ranks]
    """Of each step those before it, a bit each: of all ranks' steps, one rank behind the other."""
    offsets = [sum(map(len, of_ranks[:rank])) for rank in range(len(of_ranks))]
    met = _in_rounds(of_ranks)
    for at in met:
        entered = 0
        for rank, (start, stop) in enumerate(at):
            for index in range(start, stop):
                step = of_ranks[rank][index]
                for earlier in step.after:
                    before[rank][index] |= before[rank][earlier] | 1 << offsets[rank] + earlier
            if stop > start and of_ranks[rank][stop - 1].is_barrier:
                entered |= before[rank][stop - 1] | 1 << offsets[rank] + stop - 1
        for rank, (start, stop) in enumerate(at):
            if stop > start and of_ranks[rank][stop - 1].is_barrier:
                before[rank][stop - 1] = entered & ~(1 << offsets[rank] + stop - 1)
    flat = [(rank, index, step) for rank, steps in enumerate(of_ranks) for index, step in enumerate(steps)]
    found = []
    for rank, index, step in flat:
        for other_rank, other_index, other in flat:
            bits = before[rank][index] >> offsets[other_rank] + other_index & 1
            back = before[other_rank][other_index] >> offsets[rank] + index & 1
            if (rank, index) < (other_rank, other_index) and not bits and not back and _clash(step, other):
                found.append(f"step {index} of rank {rank} and step {other_index} of rank {other_rank}")
    return found


def _in_rounds(of_ranks: list[list[Step]]) -> list[list[tuple[int, int]]]:
    """Of each rank where its steps begin and end that lead to each barrier, it included."""
    ends = [[index + 1 for index, step in enumerate(steps) if step.is_barrier] + [len(steps)] for steps in of_ranks]
    assert len({len(one) for one in ends}) == 1, "ranks meet at other barriers"
    starts = [[0, *one[:-1]] for one in ends]
    return [[(starts[rank][turn], ends[rank][turn]) for rank in range(len(of_ranks))] for turn in range(len(ends[0]))]


def _clash(one: Step, other: Step) -> bool:
    return any(
        where == there and start < end and begin < stop and (writes or written)
        for where, start, stop, writes in one.touches
        for there, begin, end, written in other.touches
    )


CALLS = [
    ("overlap", "sum", 160, 8),
    ("overlap:chunks=4", "sum", 300, 8),
    ("overlap:chunks=3", "sum", 700, 16),
    ("overlap:chunks=4", "sum", 33, 8),
    ("overlap:chunks=4", "gather", 300, 8),
    ("overlap", "gather", 700, 16),
    ("overlap", "start_sum", 160, 8),
    ("overlap", "start_sum", 700, 16),
    ("overlap:chunks=4", "start_gather", 300, 8),
    ("overlap", "start_gather", 700, 16),
    ("peer_add", "sum", 700, 16),
    ("peer_add", "start_sum", 64, 8),
]


@pytest.mark.parametrize(("spec", "call", "tokens", "features"), CALLS)
def test_nothing_races_on_two_ranks(spec: str, call: str, tokens: int, features: int, cpu_ranks: Ranks) -> None:
    assert not races(cpu_ranks.run(_steps, spec, call, tokens, features, None))


@pytest.mark.parametrize(("spec", "call", "tokens", "features"), CALLS)
def test_nothing_races_on_four_ranks(spec: str, call: str, tokens: int, features: int, four_ranks: Ranks) -> None:
    assert not races(four_ranks.run(_steps, spec, call, tokens, features, None))


@pytest.mark.parametrize("skip", ["wait_for", "wait", "barrier"])
def test_a_wait_that_is_missing_is_seen(skip: str, four_ranks: Ranks) -> None:
    assert races(four_ranks.run(_steps, "overlap:chunks=4", "sum", 300, 8, skip))
