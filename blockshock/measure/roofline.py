"""The time that no implementation can beat: what a pass must do, over what this machine was seen to do at its fastest.

Derivations and assumptions: docs/theory.md. Times in seconds, rates per second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Known = TypeVar("Known")


class NoCeiling(ValueError):
    """A limit needs a ceiling that could not be measured."""


@dataclass(frozen=True)
class Line:
    """Time of a collective over the bytes of its message: latency, and bytes a second beyond it."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size: int) -> float:
        return self.latency_s + size / self.bytes_per_s

    @classmethod
    def below(cls, points: Sequence[tuple[int, float]]) -> Line:
        """The line under all (bytes, seconds) that touches one of them, with the slope from the smallest message to the
        largest; where that would begin below zero, from zero on.

        Raises:
            ValueError: fewer than two sizes, or the largest took no longer than the smallest.
        """
        if len(points) < 2:
            raise ValueError(f"a line takes messages of two sizes, got {len(points)} points")
        (small, first), *_, (large, last) = sorted(points)
        if large == small or last <= first:
            raise ValueError(f"no line: {small} bytes took {first} s, {large} bytes {last} s")
        slope = (last - first) / (large - small)
        latency = min(seconds - slope * size for size, seconds in points)
        if latency < 0:
            return cls(0.0, max(size / seconds for size, seconds in points))
        return cls(latency, 1 / slope)


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches at most, under the protocol that its benchmarks are timed by.

    None, or no entry, where there is no such thing, or where it could not be measured.

    Attributes:
        memory_bytes_per_s: of reading or copying much more than the cache holds.
        cache_bytes: what the last-level cache holds: bytes that may never reach the memory.
        dense_flops_per_s: by dtype.
        sparse_flops_per_s: of the 2:4 tensor cores, by dtype, in FLOPs of kept values. The vendors' dense-equivalent
            rate is twice that.
        all_reduce, all_gather: beyond ``launch_s``; there is none with a single rank.
        launch_s: of a call that does nothing.
    """

    memory_bytes_per_s: float | None
    cache_bytes: int
    dense_flops_per_s: Mapping[str, float]
    sparse_flops_per_s: Mapping[str, float]
    all_reduce: Line | None
    all_gather: Line | None
    launch_s: float | None

    def flops_per_s(self, unit: str, dtype: str) -> float:
        """Raises NoCeiling if there is none.

        Args:
            unit: as of an Operand; with the name of a format before it, the rate is that of the format.
        """
        format = unit.removesuffix("2:4").removesuffix("dense").strip()
        rates = self.sparse_flops_per_s if unit.endswith("2:4") else self.dense_flops_per_s
        return known(rates.get(format or dtype), f"{unit} products in {dtype}")


def known(ceiling: Known | None, what: str) -> Known:
    """The ceiling; raises NoCeiling if there is none."""
    if ceiling is None:
        raise NoCeiling(f"there is no ceiling of {what}: it could not be measured")
    return ceiling


@dataclass(frozen=True)
class Operand:
    """What a product multiplies by on one rank.

    Attributes:
        values: numbers that are multiplied: of a compressed half those it keeps.
        size: bytes that are read for them, positions included.
        unit: ``dense`` or ``2:4``: whose rate counts; in a format ``int8`` or ``int8 2:4``.
    """

    values: int
    size: int
    unit: str = "dense"


@dataclass(frozen=True)
class Work:
    """What one rank cannot avoid.

    Attributes:
        flops: by unit.
        first_bytes: read for the first time, so from memory.
        again_bytes: read once more in another pass: what the cache carries there need not come from memory.
        written_bytes: what the cache still holds at the end need not have reached the memory.
        messages: collectives by name, and bytes of their result.
    """

    flops: Counter[str] = field(default_factory=Counter)
    first_bytes: int = 0
    again_bytes: int = 0
    written_bytes: int = 0
    messages: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.first_bytes + other.first_bytes,
            self.again_bytes + other.again_bytes,
            self.written_bytes + other.written_bytes,
            self.messages + other.messages,
        )

    def memory_bytes(self, cache_bytes: int, flushed: bool = True) -> int:
        """Bytes that must pass between memory and cache; one that was not flushed holds some to begin with."""
        first = self.first_bytes if flushed else max(self.first_bytes - cache_bytes, 0)
        return first + max(self.again_bytes - cache_bytes, 0) + max(self.written_bytes - cache_bytes, 0)


def product(tokens: int, operands: Iterable[Operand], read: int, written: int, again: bool = False) -> Work:
    """Of products of ``tokens`` rows with the operands.

    Args:
        read, written: bytes of the input and of the output.
        again: the operands were read before in the same pass.
    """
    flops, size = Counter[str](), 0
    for operand in operands:
        flops[operand.unit] += 2 * tokens * operand.values
        size += operand.size
    return Work(flops, read + (0 if again else size), size if again else 0, written)


def demands(work: Work, ceilings: Ceilings, dtype: str, flushed: bool = True) -> dict[str, float]:
    """Seconds that each resource is busy at least.

    Raises:
        NoCeiling: that of a resource is missing.
    """
    lines = {"all_reduce": ceilings.all_reduce, "all_gather": ceilings.all_gather}
    rate = known(ceilings.memory_bytes_per_s, "memory")
    found = {
        "compute": sum(flops / ceilings.flops_per_s(unit, dtype) for unit, flops in work.flops.items()),
        "memory": work.memory_bytes(ceilings.cache_bytes, flushed) / rate,
    }
    if work.messages:
        found["communication"] = sum(known(lines[name], name).seconds(size) for name, size in work.messages)
    return found


def limit(found: Mapping[str, float]) -> tuple[float, str]:
    """Of what each resource demands: seconds that no implementation can beat, and the resource that sets them.

    A maximum over the resources, not a sum: a perfect implementation keeps all of them busy at once.
    """
    bound_by = max(found, key=lambda resource: found[resource])
    return found[bound_by], bound_by
