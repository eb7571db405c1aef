"""The answer of a run, in lines that every place shows: was it right, which use of 2:4 pays, where, and how surely.

A number is a time over that of the best dense alternative at the same point: below one is faster.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.asked import counted, median, spanned, verdict_table
from blockshock.report.models import PASSES, model_lines
from blockshock.report.points import Against, against_best
from blockshock.report.tables import Info
from blockshock.report.where import Spot, where
from blockshock.saved import PASSES as LIMIT
from blockshock.saved import PHASES, Run, faults, judges, or_inf, section_of, was_checked

__all__ = ["answer", "hardware", "pays", "verdict_table"]

KEEPS_W = ("kernel", "storage")
"""What is picked without another W′: rows that differ in nothing else lose the same."""
VERDICTS = ("faster", "slower", "tie", "undecided")
UNPAIRED = 0.03
"""Medians of the same thing, each of builds of its own, lie up to that far apart."""
MOST_CHOICES = 3


def answer(run: Run) -> list[str]:
    """The lines; none where nothing can be shown."""
    infos = run.infos
    if not infos:
        return []
    uses = _uses(run)
    lines = [_ran(run), *_wrong(infos)]
    several = len({points[0].dtype for points in uses}) > 1
    lines += [_use(points, several, infos) for points in uses]
    return [*lines, *model_lines(run), *_not_here(infos), *(() if uses else _untimed(infos))]


def _ran(run: Run) -> str:
    """Hardware, versions, date, how much there is, and how much of it is right."""
    infos, machine = run.infos, run.machine
    versions = [f"{name.removeprefix('git_')} {machine[name]}" for name in ("torch", "git_commit") if machine.get(name)]
    dtypes = list(dict.fromkeys(info["dtype"] for info in _important(infos)))
    told = ", ".join(filter(None, [hardware(run), *dtypes, *(versions or ["versions unknown"]), run.taken[:10]]))
    checked = [info for info in infos if was_checked(info)]
    wrong = sum(bool(faults(info)) for info in checked)
    right = f"{wrong} of {len(checked)} checked ones WRONG" if wrong else f"all {len(checked)} checked ones right"
    found = [told, f"{len(infos)} results, {right if checked else 'none checked'}", *_against_itself(infos)]
    return " · ".join(found)


def hardware(run: Run) -> str:
    """What it ran on: GPUs by name and number, or the CPU."""
    first, ranks = run.infos[0], max(info["ranks"] for info in run.infos)  # some of them run on one alone
    gpus = Counter(gpu.partition(",")[0] for gpu in run.machine.get("gpus", []))
    if first["device"] == "cuda" and gpus:
        on = ", ".join(f"{count} × {gpu}" for gpu, count in gpus.items())
        shown = on if gpus.total() == ranks else f"{ranks} rank{'s' if ranks > 1 else ''} on {on}"
    else:
        cpu = (first["device"] == "cpu" and run.machine.get("cpu")) or "unnamed hardware"
        shown = f"{ranks} {first['device'].upper()} rank{'s' if ranks > 1 else ''} on {cpu}"
    machines = run.machine.get("machines") or 1
    return f"{machines} machines, the first with {shown}" if machines > 1 else shown


def _important(infos: list[Info]) -> list[Info]:
    """What is timed, or all where nothing is: checks are of more dtypes."""
    return [info for info in infos if "p50_ms" in info or "verdict" in info] or infos


def _against_itself(infos: list[Info]) -> Iterator[str]:
    """How often a row was told from itself, where a hypothesis compared it with itself."""
    same = [info["verdict"] for info in infos if "verdict" in info and info["rival"] == info["label"]]
    if same:
        yield f"A against itself: {sum(one in ('faster', 'slower') for one in same)} of {len(same)} told apart"


def _wrong(infos: list[Info]) -> Iterator[str]:
    """All that failed, by name."""
    failed = Counter(info["label"] for info in infos if was_checked(info) and faults(info))
    if failed:
        yield f"WRONG: {', '.join(f'{label} at {count}' for label, count in failed.most_common())}"


def _uses(run: Run) -> list[list[Against]]:
    """Points of each method, section and dtype, in the order of the methods and then of the sections."""
    found: dict[tuple[str, str, str], list[Against]] = defaultdict(list)
    for one in against_best(run):
        found[one.method, one.section, one.dtype].append(one)
    methods, sections = list(dict.fromkeys(method for method, *_ in found)), list(PHASES.values())
    return [
        found[use] for use in sorted(found, key=lambda use: (methods.index(use[0]), sections.index(use[1]), use[2]))
    ]


def _use(points: list[Against], several: bool, infos: list[Info]) -> str:
    """A method in a section: whether it pays and where, by how much, against what, at what loss, and how surely."""
    first = points[0]
    labels = dict.fromkeys(one.label for one in points)
    name = first.label if len(labels) == 1 else first.method
    use = f"{name}, {PASSES[first.section]}{f', {first.dtype}' if several else ''}"
    paying = [one.ratio for one in points if pays(one)]
    best = f"Time ÷ best dense ({counted(one.rival for one in points)})"
    there = f"; where it pays {spanned(paying)}" if paying and len(paying) < len(points) else ""
    numbers = f"{best}: {median(one.ratio for one in points)}{there}"
    return ". ".join([f"{use}: {_says(points)}", numbers, *_losing(infos, first, set(labels)), _sure(points)])


def pays(one: Against) -> bool | None:
    """Whether it is faster there; None where that is undecided."""
    if one.verdict is not None:
        return None if one.verdict == "undecided" else one.verdict == "faster"
    return None if abs(one.ratio - 1) <= UNPAIRED else one.ratio < 1


def _says(points: list[Against]) -> str:
    at = where([Spot(one.N, one.K, one.B, pays(one)) for one in points])
    undecided = sum(pays(one) is None for one in points)
    if undecided == len(points):
        return "undecided"
    more = f", undecided at {undecided}" if undecided else ""
    return f"pays {at}{more}" if at != "nowhere" else f"does not pay{more}{f' of {len(points)} points' if more else ''}"


def _sure(points: list[Against]) -> str:
    """How many points rest on pairs, what these say, and how narrow their intervals are."""
    paired = [one for one in points if one.verdict is not None]
    medians = f"medians, which decide nothing within {UNPAIRED:.0%}"
    if not paired:
        return f"Not paired: {medians}"
    counts = Counter(one.verdict for one in paired)
    said = ", ".join(f"{verdict} at {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    half = statistics.median((one.high - one.low) / 2 / one.ratio for one in paired)  # type: ignore[operator]
    of, rest = (
        (f"all {len(points)}", "")
        if len(paired) == len(points)
        else (f"{len(paired)} of {len(points)}", f"; elsewhere {medians}")
    )
    return f"Paired at {of}, ± {half:.1%}: {said}{rest}"


def _losing(infos: list[Info], use: Against, labels: set[str]) -> Iterator[str]:
    """What the output of its fastest rows loses, where the run says that of them: of no other row."""
    of_use = (use.method, use.section, use.dtype)
    told = [info for info in infos if info["label"] in labels]
    rows = [info for info in told if (info["method"], judges(info) or section_of(info), info["dtype"]) == of_use]
    if lost := _lost(rows):
        yield f"Loses {lost} of the output"


def _lost(infos: list[Info]) -> str:
    """What each choice of W′ loses, the median over its layers; the least first, and of many the least and the most."""
    errors: dict[str, list[float]] = defaultdict(list)
    for info in infos:
        if "loses" in info:
            picked = (spec for axis, spec in info["picks"].items() if axis not in KEEPS_W)
            errors[" ".join(picked)].append(info["loses"]["output_error"])
    medians = {picked: sorted(found, key=or_inf)[len(found) // 2] for picked, found in errors.items()}
    ranked = sorted(medians.items(), key=lambda one: or_inf(one[1]))
    if len(ranked) == 1:
        return f"{ranked[0][1]:.3f}"
    told = [f"{error:.3f} ({picked})" for picked, error in ranked]
    return f"{told[0]} to {told[-1]}" if len(told) > MOST_CHOICES else ", ".join(told)


def _not_here(infos: list[Info]) -> Iterator[str]:
    """What takes hardware that was not there."""
    asked = [info for info in infos if info["role"] == "subject"]
    alone = dict.fromkeys(info["method"] for info in asked if info["span"] == "group" and info["ranks"] == 1)
    if alone:
        yield f"{', '.join(alone)}: needs two GPUs or more, not measured here: one held all of it"
    if infos[0]["device"] == "cpu" and any("p50_ms" in info for info in infos):
        yield "on a CPU: what is right is right anywhere, but the times say nothing of a GPU"


def _untimed(infos: list[Info]) -> Iterator[str]:
    """Of a run that compares no times: what was nearest to being wrong, and what is lost."""
    if any(section_of(info) in PHASES.values() for info in infos):
        yield "nothing that is asked about was timed beside a dense alternative"
    kinds: dict[str, tuple[str, Any]] = {
        "worst_weight_share": ("farthest from dense training", lambda info: info["worst_weight_share"]),
        "worst_drift": ("fed back to itself, the largest error", lambda info: info["worst_drift"] / LIMIT),
        "error_ratio": ("largest error", lambda info: info["error_ratio"] / (info.get("error_ratio_limit") or LIMIT)),
    }
    for kind, (what, share) in kinds.items():
        rows = [
            info
            for info in infos
            if kind in info and was_checked(info) and (kind != "error_ratio" or "worst_drift" not in info)
        ]
        if rows:
            worst = max(rows, key=lambda info: or_inf(share(info)))
            at = f"{worst['label']}, {worst['workload']} {worst['N']}×{worst['K']} B={worst['B']} {worst['dtype']}"
            yield f"{what}: {share(worst):.0%} of what passes, {at}"
    asked = [info for info in infos if info["role"] == "subject" and "loses" in info]
    for method in dict.fromkeys(info["method"] for info in asked):
        yield f"{method} loses {_lost([info for info in asked if info['method'] == method])} of the output"
