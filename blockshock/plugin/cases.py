"""Which cases a run covers: the grid, what is checked on small layers, and every pair of choices there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from blockshock.matrices import Workload, build_workload
from blockshock.methods import METHODS, Axis, Promise, Role, Span, axis_of, method_of
from blockshock.models import NETWORKS
from blockshock.phases import Case, Claim, claims, compresses_every_time, network_case, network_claims
from blockshock.phases.lesson import BATCHES
from blockshock.plugin.cover import Cover
from blockshock.plugin.points import Points
from blockshock.plugin.settings import Settings
from blockshock.plugin.usual_sizes import DRIFT_B, TRAJECTORY_B
from blockshock.pruning import PRUNERS
from blockshock.training import OPTIMIZERS

Choose = Callable[[Axis, dict[str, str]], tuple[str, ...]]
"""The specs of an axis, beside what is picked already."""


def forward_grid(settings: Settings) -> list[Case]:
    """Every asked-for method with all its picks, for each workload, dtype, size and B; one that learns where it is
    trained."""
    return _grid(settings, settings.points, both_ways=False)


def backward_grid(settings: Settings) -> list[Case]:
    """The same with what is usual where passes go backward too, such as masks that fit each kernel both ways."""
    return _grid(settings, settings.points, both_ways=True)


def training_grid(settings: Settings) -> list[Case]:
    """Those at the sizes of training, for each optimizer, with what is picked only in training."""
    choose = _asked(settings, both_ways=True)
    return [
        trained
        for case in _grid(settings, settings.training_points, both_ways=True)
        for trained in _trained(case, settings.optimizers, choose)
    ]


def hypotheses(settings: Settings) -> list[Claim]:
    """Every hypothesis about every row of the grids that it is about."""
    return list(claims(forward_grid(settings), training_grid(settings), settings.ranks))


def network_hypotheses(settings: Settings) -> list[Claim]:
    """Every hypothesis about whole networks, of every row in one; on a CPU, whose times say nothing of a GPU, of the
    first row alone unless methods were asked for."""
    found = list(network_claims(networks(settings)))
    return found if settings.device == "cuda" or "methods" in settings.asked else found[:1]


def trajectories(settings: Settings) -> list[Case]:
    """Small layers to train beside dense ones: each method with all its picks, and each optimizer.

    On gaussian data; and on a recorded layer too the first way of those that pick how they are trained, with one
    optimizer where they have weights of their own: each has dense runs of its own beside it. In float32 on a CPU; on
    GPUs in bf16 with float32 parameters. Of the picks, and of B, those that were asked for; but no storage that
    compresses only every k-th step, for that is not equivalent to dense training.
    """
    dtype, size = ("fp32", (256, 192)) if settings.device == "cpu" else ("bf16", (512, 384))
    each = _each(settings)
    gaussian, recorded = ("gaussian", *size), ("recorded", 1536, 384)
    rows = list(_rows(settings.methods, each))
    how = [row for row in rows if any(axis.trained_only for axis in _axes(row[0]))]
    first: Choose = lambda axis, picks: each(axis, picks)[:1]  # noqa: E731
    # Lesson by lesson: the dense runs beside them are made once for each.
    return [
        case
        for (workload, N, K), some, choose in ((gaussian, rows, each), (recorded, how, first))
        for B in _tokens(settings, TRAJECTORY_B, build_workload(workload), BATCHES)
        for optimizer, row in itertools.product(OPTIMIZERS.names(), some)
        if optimizer == "adamw" or _in_each_optimizer(row[0], some is rows)
        for case in _trained(Case(*row, workload, N, K, B, dtype, settings.seed), (optimizer,), choose)
        if compresses_every_time(case)
    ]


def _in_each_optimizer(method: str, on_gaussian: bool) -> bool:
    """Whether a method is trained by all optimizers: a recipe by the one that recipes are made for."""
    promise = method_of(method)[0].promise
    return promise == Promise.DENSE or (on_gaussian and promise != Promise.LEARNS)


def drifts(settings: Settings) -> list[Case]:
    """Square layers to feed their outputs back to: each method with all its picks, each dtype, and each B asked for."""
    size = {"cpu": 256, "cuda": 2048}[settings.device]
    return [
        Case(*row, "gaussian", size, size, B, dtype, settings.seed)
        for dtype in settings.dtypes
        for B in _tokens(settings, DRIFT_B, build_workload("gaussian"))
        for row in _rows(settings.methods, _each(settings))
    ]


def networks(settings: Settings) -> list[Case]:
    """Rows in each network, in all of its linear layers or some, for each batch and dtype; in float32 on a CPU.

    Rows on one device, and of a method that was not asked for what is usual. On GPUs a network with trained weights has
    one with each pruner, for what they lose is what it is there to show.
    """
    return [
        network_case(method, picks, spec, where, B, dtype, settings.seed)
        for spec, where in itertools.product(settings.networks, settings.where)
        for B in settings.batches or NETWORKS.resolve(spec)[0].batches[settings.device]
        for dtype in (settings.dtypes if settings.device == "cuda" else ("fp32",))
        for method, picks in _timed_rows(_in_networks(settings), _usual_in(settings, spec))
    ]


def _in_networks(settings: Settings) -> tuple[str, ...]:
    """Methods that are layers of ours: those asked for, or of one device those that anything is asked about, and the
    dense alternatives."""
    layers = [name for name in settings.methods if not method_of(name)[0].instead]
    if "methods" in settings.asked:
        return tuple(layers)
    kinds = {name: method_of(name)[0] for name in layers if method_of(name)[0].promise != Promise.LEARNS}
    return tuple(name for name, kind in kinds.items() if kind.span == Span.ONE and kind.role != Role.ABLATION)


def _usual_in(settings: Settings, spec: str) -> Choose:
    """What was asked for, else the first of what the session picks; or each pruner."""
    every = settings.device == "cuda" and NETWORKS.resolve(spec)[0].real

    def choose(axis: Axis, picks: dict[str, str]) -> tuple[str, ...]:
        found = settings.axes[axis.name] or axis.usual(settings.device, picks, both_ways=False)
        if axis.name in settings.asked:
            return found
        return PRUNERS.names() if every and axis.registry is PRUNERS else found[:1]

    return choose


def cover(settings: Settings, grid: list[Case]) -> list[Case]:
    """Small cases beside the grid: every pair of choices that applies together, or their full product."""
    if settings.cover == "grid":
        return []
    families = [Cover(methods, settings.device, settings.seed) for methods in _families()]
    found = [case for family in families for case in getattr(family, settings.cover)()]
    seen = {case.id for case in grid}
    return [case for case in found if not (case.id in seen or seen.add(case.id))]  # type: ignore[func-returns-value]


def _families() -> list[list[str]]:
    """Methods between whose picks pairs are formed: those with axes that are others' too. A new family leaves the
    pairs of the others as they are."""
    families: list[tuple[set[str], list[str]]] = []
    for method in METHODS.names():
        axes = {axis.name for axis in _axes(method) if not (axis.with_method or axis.trained_only or axis.unsaid)}
        for shared, methods in families:
            if axes <= shared or shared <= axes:
                shared |= axes
                methods.append(method)
                break
        else:
            families.append((axes, [method]))
    return [methods for _, methods in families]


def _tokens(settings: Settings, usual: int, workload: Workload, batches: int = 1) -> list[int]:
    """B of what is checked on small layers: what was asked for, as far as the workload has so many tokens."""
    found = settings.points.tokens if "B" in settings.asked else (usual,)
    return [B for B in found if B * batches <= (workload.most_tokens or B * batches)]


def _grid(settings: Settings, points: Points, both_ways: bool) -> list[Case]:
    # What runs on one device comes first: each change gives back what ranks keep, and W is made anew.
    shared = lambda row: method_of(row[0])[0].span != Span.ONE  # noqa: E731
    cases, rows = [], sorted(_timed_rows(settings.methods, _asked(settings, both_ways)), key=shared)
    for spec, dtype in itertools.product(settings.workloads, settings.dtypes):
        workload = build_workload(spec)
        learned = points.learned(workload, settings.training_points)
        for N, K, B in points.of(workload):
            if workload.shapes is None and not settings.listed(N, K, B):
                continue
            for row in rows:
                if (N, K, B) in learned or method_of(row[0])[0].promise != Promise.LEARNS:
                    cases.append(Case(*row, spec, N, K, B, dtype, settings.seed, settings.keep_full_weight))
    return cases


def _axes(method: str) -> list[Axis]:
    return [axis_of(name) for name in method_of(method)[0].axes]


def _asked(settings: Settings, both_ways: bool) -> Choose:
    """What the session picks."""

    def choose(axis: Axis, picks: dict[str, str]) -> tuple[str, ...]:
        return _alone(axis, settings) or settings.axes[axis.name] or axis.usual(settings.device, picks, both_ways)

    return choose


def _each(settings: Settings) -> Choose:
    """What is checked on small layers: what was asked for, else more than the session picks."""

    def choose(axis: Axis, picks: dict[str, str]) -> tuple[str, ...]:
        asked = settings.axes[axis.name] if axis.name in settings.asked and not axis.small else None
        return _alone(axis, settings) or asked or axis.each(settings.device, picks)

    return choose


def _alone(axis: Axis, settings: Settings) -> tuple[str, ...]:
    """What is left to pick of what only several ranks can differ in, where there is one; else nothing."""
    return (axis.unsaid,) if axis.of_ranks and axis.unsaid is not None and settings.ranks == 1 else ()


def _rows(methods: tuple[str, ...], choose: Choose) -> Iterator[tuple[str, dict[str, str]]]:
    """Each method with all its picks but those of training."""
    for method in methods:
        axes = [axis for axis in _axes(method) if not axis.trained_only]
        yield from ((method, picks) for picks in _picks(axes, choose, {}))


def _timed_rows(methods: tuple[str, ...], choose: Choose) -> Iterator[tuple[str, dict[str, str]]]:
    """The same, each dense alternative also as everybody has it: without those nobody knows the best dense one."""
    for method in methods:
        kind, rows = method_of(method)[0], list(_rows((method,), choose))
        if kind.role == Role.RIVAL and kind.promise == Promise.DENSE:
            for _, picks in reversed(tuple(rows)):
                usual = {name: spec for name, spec in picks.items() if axis_of(name).unsaid is None}
                rows[:0] = [] if (method, usual) in rows else [(method, usual)]
        yield from rows


def _trained(case: Case, optimizers: tuple[str, ...], choose: Choose) -> Iterator[Case]:
    """The case by each optimizer, with all picks of training."""
    axes = _axes(case.method)
    more = list(_picks([axis for axis in axes if axis.trained_only], choose, dict(case.picks)))
    for optimizer, picks in itertools.product(optimizers, more):
        yield replace(
            case, optimizer=optimizer, picks={axis.name: picks[axis.name] for axis in axes if axis.name in picks}
        )


def _picks(axes: list[Axis], choose: Choose, picks: dict[str, str]) -> Iterator[dict[str, str]]:
    """All combinations of the axes' specs, the last axis first to change, added to these picks."""
    if not axes:
        yield picks
        return
    first, *others = axes
    for spec in choose(first, picks):
        yield from _picks(others, choose, picks if spec == first.unsaid else picks | {first.name: spec})
