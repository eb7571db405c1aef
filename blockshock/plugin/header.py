"""The header of a session: where it measures, what it goes on with, and what was asked for and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from blockshock.machine import environment
from blockshock.matrices import build_workload
from blockshock.methods import METHODS, Axis, all_axes, method_of
from blockshock.plugin import cases, options
from blockshock.plugin.settings import Settings
from blockshock.plugin.usual_sizes import CHECKED
from blockshock.registry import brought, parse_spec

OPTION_OF = {"method": "--methods", "workload": "--workloads", "optimizer": "--optimizers", "model": "--layers"}
"""By the kind of what it picks; of axes each has its own."""


def lines(config: pytest.Config, settings: Settings) -> list[str]:
    """What the options came to, in so far as no stage says it."""
    where = ", ".join(environment.gpus()) if settings.device == "cuda" else environment.cpu_name()
    ranks = f"{settings.ranks} {settings.device} rank{'s' if settings.ranks > 1 else ''}"
    return [
        f"blockshock: {ranks} ({where}), timing {settings.timing}, seed {settings.seed}",
        *filter(None, [_left_out(config, settings)]),
        *_extended(settings),
        *filter(None, [_unused(config, settings, axis) for axis in all_axes()]),
        *_points(config, settings),
        *_blocks(settings),
        *(
            f"{name} is another plugin's: ours is --blockshock-{name[2:]}"
            for name in config.stash.get(options.GAVE_WAY, [])
        ),
    ]


def _left_out(config: pytest.Config, settings: Settings) -> str | None:
    """Methods that the default leaves out."""
    names = [name for name in METHODS.names() if name not in settings.methods]
    if not names or options.get(config, "--methods") is not None:
        return None
    return f"left out, being dense_single on one rank: {', '.join(names)}; --methods all runs them too"


def _extended(settings: Settings) -> Iterator[str]:
    """What files of the user's brought, and what of that nothing picks."""
    option_of = OPTION_OF | {axis.name: axis.option for axis in all_axes()}
    picked = _picked(settings) if settings.extend else set()
    for file in settings.extend:
        told = [
            f"{kind} {name}"
            + (f" (not picked: {option_of[kind]})" if kind in option_of and (kind, name) not in picked else "")
            for kind, name in brought(file)
        ]
        if told:
            yield f"{file} adds {', '.join(told)}"


def _picked(settings: Settings) -> set[tuple[str, str]]:
    """Kind and name of all that the grids are made of."""
    found = {("model", use.model) for use in settings.layers}
    for case in (*cases.forward_grid(settings), *cases.training_grid(settings)):
        specs = {"method": case.method, "workload": case.workload, "optimizer": case.optimizer or "", **case.picks}
        found |= {(kind, parse_spec(spec)[0]) for kind, spec in specs.items()}
    return found


def _unused(config: pytest.Config, settings: Settings, axis: Axis) -> str | None:
    """Options of an axis that none of the methods has. To ask for both is no error, for a script may go through methods
    with one set of options."""
    names = (axis.option, *(one.name for one in axis.beside))
    given = [name for name in names if options.get(config, name)]
    having = [name for name in METHODS.names() if axis.name in METHODS.get(name).axes]
    if not given or any(axis.name in method_of(method)[0].axes for method in settings.methods):
        return None
    change = "changes" if len(given) == 1 else "change"
    does = f"none of --methods picks a {axis.name}, as {', '.join(having)} do" if having else "no method has that axis"
    return f"{' and '.join(given)} {change} nothing: {does}"


def _points(config: pytest.Config, settings: Settings) -> Iterator[str]:
    """Of points that were asked for: what is listed more than once, and what a workload cannot take."""
    listed = Counter((use.N, use.K, use.B) for use in settings.layers if use.B is not None)
    for (N, K, B), times in listed.items():
        if times > 1:
            count = sum(use.count for use in settings.uses(N, K, B))
            yield f"--points lists N {N}, K {K}, B {B} {times} times: measured once, with the counts added up ({count})"
    workloads = {spec: build_workload(spec) for spec in settings.workloads}
    sizes = [name for name in ("--N", "--layers", "--points") if options.get(config, name) is not None]
    if sizes and all(workload.shapes for workload in workloads.values()):
        yield f"{sizes[0]} changes no N and no K: {', '.join(workloads)} has its own"
    tokens = [name for name in ("--B", "--points") if options.get(config, name) is not None]
    for spec, workload in workloads.items():
        beyond = [str(B) for B in settings.points.tokens if (workload.most_tokens or B) < B]
        if tokens and beyond:
            yield f"{spec} has {workload.most_tokens} tokens: it is not measured at B {', '.join(beyond)}"


def _blocks(settings: Settings) -> Iterator[str]:
    """Of widths that were asked for: what is checked has others."""
    if settings.widths:
        d, hidden, tokens, _ = CHECKED[settings.device]
        small = f"{d}x{hidden} with {tokens} tokens"
        yield f"--d and --B change no block that is checked, of {small}: they size what is timed"
