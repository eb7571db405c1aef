"""What a way to combine is: it makes one output of what each rank has, a sum or feature shards side by side.

One class registered in COMBINES; nothing else needs to know of it. Its work is the stage ``reduce``, and it is told
how to make this rank's part rather than given it: so the part can be written where peers read it, and be under way to
them while the rest of it is still computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from blockshock.machine.collectives import Group
from blockshock.registry import Registry
from blockshock.stages import copied, stage


class Make(Protocol):
    """Makes some rows of a part, or all (None), in memory of its own, or where it is told to."""

    def __call__(self, rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class Peers:
    """What a kernel needs that sums over the ranks itself.

    Attributes:
        memories: each rank's, in rank order: two slots of float32 sums, whose bits are all set where there is none.
        turns: (2,) int32 of this rank alone: how many launches there were, and what one of them counts.
    """

    rank: int
    memories: tuple[torch.Tensor, ...]
    turns: torch.Tensor

    @property
    def slot(self) -> int:
        """How many sums a slot has room for: of each peer as many as a product has elements."""
        return self.memories[0].numel() // 2


@dataclass
class Part:
    """This rank's part (B, F) of an output, made where and as far as it is wanted.

    Attributes:
        tokens, features: B and F.
        fused: makes the sum of all ranks' parts, where what makes this part can do that itself.
    """

    make: Make
    tokens: int
    features: int
    dtype: torch.dtype
    device: torch.device
    fused: Callable[[Peers], torch.Tensor] | None = None

    @classmethod
    def of(cls, part_BF: torch.Tensor) -> Part:
        """One that is there already; a sum may be written over it."""

        def make(rows: slice | None, out: torch.Tensor | None = None) -> torch.Tensor:
            found = part_BF if rows is None else part_BF[rows]
            return found if out is None else out.copy_(found)

        tokens, features = part_BF.shape
        return cls(make, tokens, features, part_BF.dtype, part_BF.device)

    def all(self) -> torch.Tensor:
        """The whole of it, contiguous."""
        part_BF = self.make(None)
        if part_BF.is_contiguous():
            return part_BF
        with stage("layout"):
            return copied(part_BF.contiguous())

    def empty(self, features: int) -> torch.Tensor:
        """(B, features), not written yet."""
        return torch.empty(self.tokens, features, dtype=self.dtype, device=self.device)


class Place:
    """Where all ranks' shards (B, S) belong in an output (B, G·S): here side by side, in rank order."""

    def put(self, shards: list[torch.Tensor], whole: torch.Tensor) -> None:
        """Write some rows of each to the same rows of the output."""
        torch.cat(shards, dim=1, out=whole)

    def joined(self, stacked: torch.Tensor, ranks: int) -> torch.Tensor:
        """The output, of shards that lie one below the other, contiguous (G·B, S)."""
        return torch.cat(stacked.chunk(ranks), dim=1)


side_by_side = Place()
"""The usual place."""


Later = Callable[[], torch.Tensor]
"""Waits for what was started, and gives it."""


class Combine:
    """One way. What its ``__init__`` takes beside these is the user's to set: ``overlap:chunks=4``.

    Of no tokens nothing is asked of other ranks: what is combined has at least one.

    Attributes:
        device_types, dtypes: where it can run at all, and what it adds; None: all.
        is_traced: the compiler takes it apart; to compiled code all others are one operator.
        is_fused: it leaves the sum to what makes the part, which must be able to.
        is_hidden: it runs beside what makes the part: what is seen of it by itself is the wait that is left.
        variants: specs of it with other parameters, which are worth being measured beside it.

    Args:
        group: of two ranks or more.
        elements: of the largest part that it is to be fast for; of larger ones it is right too.
        dtype: of the parts.
        device: where they lie.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = None
    is_traced: ClassVar[bool] = False
    is_fused: ClassVar[bool] = False
    is_hidden: ClassVar[bool] = False
    variants: ClassVar[tuple[str, ...]] = ()

    def __init__(self, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        raise NotImplementedError

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why it cannot run on that device and dtype."""
        if device.type not in cls.device_types:
            return "needs GPUs that reach each other's memory: on a CPU gloo has the counterpart of nccl alone"
        if cls.dtypes is not None and dtype not in cls.dtypes:
            return f"adds {', '.join(map(str, cls.dtypes))}, not {dtype}: pick nccl for that"
        return None

    @classmethod
    def check(cls, **parameters: Any) -> None:
        """Raises InputError of values that none of what a user may set takes, wherever it is to run."""

    @classmethod
    def unsuitable(cls, ranks: int | None, tokens: int, **parameters: Any) -> str | None:
        """None, or one sentence that says why it is not for so many ranks, if that is known, or tokens."""
        return None

    @classmethod
    def held_bytes(cls, size: int, ranks: int) -> int:
        """Bytes that each of two ranks or more holds for it, for parts of ``size`` bytes."""
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Combine:
        """Itself: a copy of a layer is on the same ranks."""
        return self

    def sum(self, part: Part) -> torch.Tensor:
        """The sum of all ranks' parts (B, N), the same bits on each."""
        raise NotImplementedError

    def gather(self, part: Part, place: Place = side_by_side) -> torch.Tensor:
        """All ranks' shards (B, S) in their place, (B, G·S)."""
        raise NotImplementedError

    def start_sum(self, part: Part) -> Later:
        """``sum``, with other work beside it until it is waited for."""
        raise NotImplementedError

    def start_gather(self, part: Part, place: Place = side_by_side) -> Later:
        """``gather``, likewise."""
        raise NotImplementedError


COMBINES: Registry[type[Combine]] = Registry("combine")


def combine_of(spec: str) -> tuple[type[Combine], dict[str, Any]]:
    """The way that a spec such as ``overlap:chunks=4`` names, and its parameters. Raises UnknownName or InputError."""
    kind, parameters = COMBINES.resolve(spec, skip=4)
    kind.check(**parameters)
    return kind, parameters


def build_combine(spec: str, group: Group, elements: int, dtype: torch.dtype, device: torch.device) -> Combine:
    """The way that a spec such as ``two_shot`` or ``overlap:chunks=4`` names, for a group."""
    kind, parameters = combine_of(spec)
    return kind(group, elements, dtype, device, **parameters)
