"""Every pair of choices, or their full product, on small layers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from blockshock.errors import BlockShockError
from blockshock.matrices import WORKLOADS, GeneratedWeights, build_workload
from blockshock.methods import Layer, axis_of, method_of, unsuitable
from blockshock.phases import DTYPES, Case

SHAPES = {
    "cpu": ((256, 256), (128, 384), (1536, 384), (384, 1536)),
    "cuda": ((1024, 1024), (512, 1536), (1536, 384), (384, 1536)),
}
TOKENS = (1, 7, 16)
_COMPLETIONS = 30

Choice = tuple[Any, ...]
"""((method, spec, …), spec of each other axis …, dtype, workload, (N, K), B); None for what is not the method's."""
Row = tuple[str, tuple[tuple[str, str], ...]]
"""A method, and of each axis the spec."""


class Cover:
    """The choices of some methods.

    Args:
        methods: between whose picks pairs are formed.
        seed: of the cases.
    """

    def __init__(self, methods: list[str], device: str, seed: int) -> None:
        names = dict.fromkeys(name for method in methods for name in method_of(method)[0].axes)
        axes = [axis for axis in map(axis_of, names) if not axis.trained_only]
        self._with_method = [axis for axis in axes if axis.with_method]
        covered = {axis.name: [spec for spec in axis.covered(device) if spec != axis.unsaid] for axis in axes}
        self._others = [axis for axis in axes if covered[axis.name] and not axis.with_method]
        self._seed = seed
        built = {name: build_workload(name) for name in WORKLOADS.names()}
        self._limits = {name: (workload.shapes, workload.most_tokens) for name, workload in built.items()}
        rows = [row for method in methods for row in self._rows(method, device)]
        picks: list[list[Any]] = [rows, *([None, *covered[axis.name]] for axis in self._others)]
        points: list[list[Any]] = [list(DTYPES), list(WORKLOADS.names()), list(SHAPES[device]), list(TOKENS)]
        self._factors = picks + points
        # Of a few hundred thousand choices a few hundred apply: most can be told by what the method picks of.
        self._rows_of = {choice: row for choice in itertools.product(*picks) if (row := self._row(choice)) is not None}

    def _rows(self, method: str, device: str) -> list[Choice]:
        picked = method_of(method)[0].axes
        specs = [axis.covered(device) if axis.name in picked else (None,) for axis in self._with_method]
        return [(method, *choice) for choice in itertools.product(*specs)]

    def _row(self, choice: Choice) -> Row | None:
        """The method with its picks of what a choice begins with; None where those are not what it takes."""
        (method, *with_method), *others = choice
        axes = method_of(method)[0].axes
        for axis, spec in zip(self._others, others, strict=True):
            picked, takes = spec is not None, axis.name in axes
            if picked != takes and (picked or axis.unsaid is None):
                return None
        named = zip([*self._with_method, *self._others], [*with_method, *others], strict=True)
        specs = {axis.name: spec for axis, spec in named if spec is not None}
        return method, tuple((axis, specs[axis]) for axis in axes if axis in specs)

    def _case(self, choice: Choice) -> Case:
        *picked, dtype, workload, (N, K), B = choice
        method, picks = self._rows_of[tuple(picked)]
        return Case(method, dict(picks), workload, N, K, B, dtype, self._seed)

    def _applies(self, choice: Choice) -> bool:
        *picked, dtype, workload, size, B = choice
        row, (shapes, most_tokens) = self._rows_of.get(tuple(picked)), self._limits[workload]
        if row is None or (shapes is not None and size not in shapes) or (most_tokens is not None and most_tokens < B):
            return False
        return not row[1] or _suits(*row, *size, dtype)

    def _completed(self, fixed: dict[int, Any]) -> Iterator[Choice]:
        """All choices that apply, where some factors have that value."""
        values = [[fixed[index]] if index in fixed else values for index, values in enumerate(self._factors)]
        points = [*itertools.product(*values[1 + len(self._others) :])]
        for picked in self._rows_of:
            if all(spec in values[index] for index, spec in enumerate(picked)):
                yield from filter(self._applies, (picked + point for point in points))

    def product(self) -> list[Case]:
        """All choices that apply."""
        return [self._case(choice) for choice in self._completed({})]

    def pairs(self) -> list[Case]:
        """Choices in which each pair of values that can go together does so at least once.

        Greedy: each pair still missing is completed in the way, of a few random ones, that covers most missing pairs;
        and in the first way there is, where none of those applies. Seeded, so that the ids of the tests stay.
        """
        factors, stream = self._factors, random.Random(24)
        missing = {
            ((i, a), (j, b))
            for i, j in itertools.combinations(range(len(factors)), 2)
            for a, b in itertools.product(factors[i], factors[j])
        }
        chosen = []
        for pair in sorted(missing, key=str):
            if pair not in missing:
                continue
            fixed = dict(pair)
            tries = [
                tuple(fixed.get(index, stream.choice(values)) for index, values in enumerate(factors))
                for _ in range(_COMPLETIONS)
            ]
            fitting = [choice for choice in tries if self._applies(choice)]
            fitting = fitting or list(itertools.islice(self._completed(fixed), 1))
            missing.discard(pair)
            if fitting:
                best = max(fitting, key=lambda choice: len(missing & _pairs_of(choice)))
                missing -= _pairs_of(best)
                chosen.append(best)
        return [self._case(choice) for choice in chosen]


def _pairs_of(choice: Choice) -> set[tuple[tuple[int, Any], tuple[int, Any]]]:
    return set(itertools.combinations(enumerate(choice), 2))


@cache
def _suits(method: str, picks: tuple[tuple[str, str], ...], N: int, K: int, dtype: str) -> bool:
    """Whether what is picked can take such a layer, on some device."""
    layer = Layer(GeneratedWeights(N, K, DTYPES[dtype], "cpu"), dict(picks))
    try:
        return unsuitable(method, layer) is None
    except BlockShockError:
        return False
