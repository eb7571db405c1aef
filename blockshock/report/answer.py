"""The answer of a run, in lines that every place shows: was it right, which use of 2:4 pays, where, and how surely.

A number is a time over that of the best dense alternative at the same point: below one is faster.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from blockshock.report.alike import UNPAIRED
from blockshock.report.asked import counted, median, spanned, verdict_table
from blockshock.report.fastest import against_best
from blockshock.report.faulty import unpaired, untimed, wrong_lines
from blockshock.report.learning import learning_lines
from blockshock.report.losing import lost
from blockshock.report.models import PASSES, model_lines
from blockshock.report.networks import network_lines
from blockshock.report.points import Against, pays
from blockshock.report.ran import hardware, ran, workloads
from blockshock.report.tables import Info
from blockshock.report.where import Spot, where
from blockshock.report.within import within_lines
from blockshock.saved import PHASES, Run, judges, section_of

__all__ = ["answer", "hardware", "pays", "verdict_table"]

VERDICTS = ("faster", "slower", "tie", "undecided")


def answer(run: Run, most_loss: float | None = None) -> list[str]:
    """The lines, what is wrong first; none where nothing can be shown.

    Args:
        most_loss: say too which row is the fastest at each batch size, of those that lose no more than this.
    """
    infos = run.infos
    if not infos:
        return []
    uses = _uses(run)
    several = len({points[0].dtype for points in uses}) > 1
    tried = [_tried(points, infos) for points in uses]
    alike = len(set(tried)) == 1  # then the first line says it for all
    lines = [*wrong_lines(infos), ran(run, tried[0] if alike else "")]
    lines += [_use(points, several, "" if alike else at, infos) for points, at in zip(uses, tried, strict=True)]
    lines += [*model_lines(run), *network_lines(run), *learning_lines(run)]
    lines += [*(() if most_loss is None else within_lines(run, most_loss))]
    compared = {(one.method, one.section) for points in uses for one in points}
    return [*lines, *_not_here(infos), *(unpaired(infos, compared) if uses else untimed(infos))]


def _uses(run: Run) -> list[list[Against]]:
    """Points of each use, section and dtype, in the order of the uses and then of the sections."""
    found: dict[tuple[str, str, str], list[Against]] = defaultdict(list)
    for one in against_best(run):
        found[one.use, one.section, one.dtype].append(one)
    names, sections = list(dict.fromkeys(name for name, *_ in found)), list(PHASES.values())
    return [found[use] for use in sorted(found, key=lambda use: (names.index(use[0]), sections.index(use[1]), use[2]))]


def _use(points: list[Against], several: bool, tried: str, infos: list[Info]) -> str:
    """A method in a section: whether it pays and where, by how much, against what, at what loss, and how surely."""
    first = points[0]
    labels = dict.fromkeys(one.label for one in points)
    name = first.label if len(labels) == 1 else first.method
    use = ", ".join(filter(None, (name, PASSES[first.section], first.dtype if several else "")))
    use += f" ({tried})" if tried else ""
    paying = [one.ratio for one in points if pays(one)]
    best = f"Time ÷ best dense ({counted(one.rival for one in points)})"
    there = f"; where it pays {spanned(paying)}" if paying and len(paying) < len(points) else ""
    numbers = f"{best}: {median(one.ratio for one in points)}{there}"
    told = [f"{use}: {_says(points)}", numbers, *_eager(points), *_losing(infos, first, labels), _sure(points)]
    return ". ".join(told)


def _eager(points: list[Against]) -> Iterator[str]:
    """The same of calls that no graph holds: what launching costs counts."""
    if found := [one.eager for one in points if one.eager is not None]:
        yield f"Eager, launch included: {median(found)}"


def _tried(points: list[Against], infos: list[Info]) -> str:
    """The sizes that were tried, and of a run that has other workloads too which of them."""
    square = all(one.N == one.K for one in points)
    sizes = ("N", "B") if square else ("N", "K", "B")
    told = [f"{size} {spanned((getattr(one, size) for one in points), 'd')}" for size in sizes]
    names = list(dict.fromkeys(one.workload for one in points))
    return ", ".join([*told, *(names if len(workloads(infos)) > len(names) else [])])


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
    undecided = f"undecided within {UNPAIRED:.0%} or their builds' scatter"
    if not paired:
        return f"Not paired: {undecided}"
    counts = Counter(one.verdict for one in paired)
    said = ", ".join(f"{verdict} at {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    half = statistics.median((one.high - one.low) / 2 / one.ratio for one in paired)  # type: ignore[operator]
    of, rest = (
        (f"all {len(points)}", "")
        if len(paired) == len(points)
        else (f"{len(paired)} of {len(points)}", f"; elsewhere not paired: {undecided}")
    )
    return f"Paired at {of} (median interval ± {half:.1%}, within this session): {said}{rest}"


def _losing(infos: list[Info], use: Against, labels: Collection[str]) -> Iterator[str]:
    """What the output of its fastest rows loses, where the run says that of them: of no other row."""
    of_use = (use.method, use.section, use.dtype)
    told = [info for info in infos if info["label"] in labels]
    if found := lost([info for info in told if (info["method"], _about(info), info["dtype"]) == of_use]):
        yield f"Loses {found}"


def _about(info: Info) -> str | None:
    return judges(info) or section_of(info)


def _not_here(infos: list[Info]) -> Iterator[str]:
    """What takes hardware that was not there."""
    asked = [info for info in infos if info["role"] == "subject"]
    alone = dict.fromkeys(info["method"] for info in asked if info["span"] == "group" and info["ranks"] == 1)
    if alone:
        yield f"{', '.join(alone)}: needs two GPUs or more, not measured here: one held all of it"
    if infos[0]["device"] == "cpu" and any("p50_ms" in info for info in infos):
        yield "on a CPU: what is right is right anywhere, but the times say nothing of a GPU"
