"""Which cases a run covers: the grid, and every pair of choices on small layers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from blockshock.kernels import KERNELS, build_kernel
from blockshock.matrices import MASKS, WORKLOADS, GeneratedWeights, build_mask, build_workload
from blockshock.methods import METHODS, method_of
from blockshock.phases import DTYPES, Case, Claim, claims
from blockshock.plugin.settings import Points, Settings
from blockshock.training import OPTIMIZERS, STORAGES

COVER_SHAPES = {
    "cpu": ((256, 256), (128, 384), (1536, 384), (384, 1536)),
    "cuda": ((1024, 1024), (512, 1536), (1536, 384), (384, 1536)),
}
COVER_TOKENS = (1, 7, 16)
_COMPLETIONS = 30

Choice = tuple[Any, ...]
"""((method, kernel), mask, dtype, workload, (N, K), B)"""


def forward_grid(settings: Settings) -> list[Case]:
    """Every asked-for method, kernel and mask, for each workload, dtype, size and B."""
    return _grid(settings, settings.masks, settings.points)


def backward_grid(settings: Settings) -> list[Case]:
    """The same with the masks of the training phases: what fits each kernel, unless others were asked for."""
    return _grid(settings, settings.training_masks, settings.points)


def training_grid(settings: Settings) -> list[Case]:
    """Those at the sizes of training, for each optimizer and, of methods that hold halves, each storage."""
    return [
        trained
        for case in _grid(settings, settings.training_masks, settings.training_points)
        for trained in _trained(case, settings.optimizers, settings.storages)
    ]


def hypotheses(settings: Settings) -> list[Claim]:
    """Every hypothesis about every Block-Shock row of the grids."""
    return list(claims(forward_grid(settings), training_grid(settings), settings.ranks))


def _trained(case: Case, optimizers: tuple[str, ...], storages: tuple[str, ...]) -> Iterator[Case]:
    picked = storages if "storage" in method_of(case.method)[0].picks else (None,)
    for optimizer, storage in itertools.product(optimizers, picked):
        yield replace(case, optimizer=optimizer, storage=storage)


def trajectories(settings: Settings) -> list[Case]:
    """Small layers to train beside dense ones: each method and kernel, optimizer and storage.

    On gaussian data, and kept values on a recorded layer too. In float32 on a CPU; on GPUs in bf16 with float32
    parameters.
    """
    dtype, size = ("fp32", (256, 192)) if settings.device == "cpu" else ("bf16", (512, 384))
    rows = list(_rows(settings.methods, _measured_kernels(settings), None))
    layers = [("gaussian", *size), ("recorded", 1536, 384)]
    # Lesson by lesson: the dense runs beside them are made once for each.
    trained = [
        case
        for (workload, N, K), optimizer, row in itertools.product(layers, OPTIMIZERS.names(), rows)
        for case in _trained(Case(*row, workload, N, K, 32, dtype, settings.seed), (optimizer,), STORAGES.names())
    ]
    return [case for case in trained if case.workload == "gaussian" or case.storage == "compressed"]


def drifts(settings: Settings) -> list[Case]:
    """Square layers to feed their outputs back to: each method, kernel and dtype."""
    size = {"cpu": 256, "cuda": 2048}[settings.device]
    return [
        Case(*row, "gaussian", size, size, 16, dtype, settings.seed)
        for dtype in settings.dtypes
        for row in _rows(settings.methods, _measured_kernels(settings), None)
    ]


def _sparse_kernels(settings: Settings) -> tuple[str, ...]:
    """Kernels that hold compressed halves on the device at hand."""
    return tuple(
        name
        for name in KERNELS.names()
        if KERNELS.get(name).sparse and settings.device in KERNELS.get(name).device_types
    )


def _measured_kernels(settings: Settings) -> tuple[str, ...]:
    """Those that ``auto`` stands for one of."""
    return tuple(name for name in _sparse_kernels(settings) if name != "auto")


def _grid(settings: Settings, masks: tuple[str, ...] | None, points: Points) -> list[Case]:
    cases = []
    for spec, dtype in itertools.product(settings.workloads, settings.dtypes):
        workload = build_workload(spec)
        tokens = [B for B in points.tokens if (workload.most_tokens or B) >= B]
        for (N, K), B in itertools.product(workload.shapes or points.sizes, tokens):
            for method, kernel, mask in _rows(settings.methods, settings.kernels, masks):
                cases.append(Case(method, kernel, mask, spec, N, K, B, dtype, settings.seed, settings.keep_full_weight))
    return cases


def _rows(
    methods: tuple[str, ...], kernels: tuple[str, ...], masks: tuple[str, ...] | None
) -> Iterator[tuple[str, str | None, str | None]]:
    for method in methods:
        picks = method_of(method)[0].picks
        for kernel in kernels if "kernel" in picks else (None,):
            fitting = masks or (build_kernel(kernel or "dense").training_mask,)
            for mask in fitting if "mask" in picks else (None,):
                yield method, kernel, mask


def cover(settings: Settings, grid: list[Case]) -> list[Case]:
    """Small cases beside the grid: every pair of choices that applies together, or their full product."""
    if settings.cover == "grid":
        return []
    rows = [(method, kernel) for method, kernel, _ in _rows(METHODS.names(), _sparse_kernels(settings), None)]
    factors: list[list[Any]] = [
        list(rows),
        [None, *MASKS.names()],
        list(DTYPES),
        list(WORKLOADS.names()),
        list(COVER_SHAPES[settings.device]),
        list(COVER_TOKENS),
    ]
    seen: set[str] = {case.id for case in grid}
    chosen = _product(factors) if settings.cover == "product" else _pairs(factors)
    cases = [_case(choice, settings.seed) for choice in chosen]
    return [case for case in cases if not (case.id in seen or seen.add(case.id))]  # type: ignore[func-returns-value]


def _case(choice: Choice, seed: int = 0) -> Case:
    (method, kernel), mask, dtype, workload, (N, K), B = choice
    return Case(method, kernel, mask, workload, N, K, B, dtype, seed)


def _applies(choice: Choice) -> bool:
    case = _case(choice)
    if ("mask" in method_of(case.method)[0].picks) != (case.mask is not None):
        return False
    workload = build_workload(case.workload)
    if workload.shapes is not None and (case.N, case.K) not in workload.shapes:
        return False
    if workload.most_tokens is not None and workload.most_tokens < case.B:
        return False
    if case.kernel is None or case.mask is None:
        return True
    return _kernel_takes(case.kernel, case.mask, case.N, case.K, case.dtype)


@cache
def _kernel_takes(kernel_spec: str, mask_spec: str, N: int, K: int, dtype_name: str) -> bool:
    kernel, dtype = build_kernel(kernel_spec), DTYPES[dtype_name]
    mask = build_mask(mask_spec, GeneratedWeights(N, K, dtype, "cpu"))
    return dtype in kernel.dtypes and kernel.unsuitable(N, K, dtype, mask) is None


def _product(factors: list[list[Any]]) -> list[Choice]:
    return [choice for choice in itertools.product(*factors) if _applies(choice)]


def _pairs(factors: list[list[Any]]) -> list[Choice]:
    """Choices in which each pair of values that can go together does so at least once.

    Greedy: each pair still missing is completed in the way, of a few random ones, that covers most missing pairs; and
    in the first way there is, where none of those applies. Seeded, so that the ids of the tests stay.
    """
    stream = random.Random(24)
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
        everything = itertools.product(*([fixed[i]] if i in fixed else values for i, values in enumerate(factors)))
        fitting = [choice for choice in tries if _applies(choice)] or list(
            itertools.islice(filter(_applies, everything), 1)
        )
        missing.discard(pair)
        if fitting:
            best = max(fitting, key=lambda choice: len(missing & _pairs_of(choice)))
            missing -= _pairs_of(best)
            chosen.append(best)
    return chosen


def _pairs_of(choice: Choice) -> set[tuple[tuple[int, Any], tuple[int, Any]]]:
    return set(itertools.combinations(enumerate(choice), 2))
