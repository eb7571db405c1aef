"""Two runs or more beside each other, each against the first: what changed, by how much, and how surely."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blockshock.report.asked import counted
from blockshock.report.models import PASSES
from blockshock.report.points import Against, asked
from blockshock.report.remarks import flushes
from blockshock.report.tables import Cell, Column, Info, Table
from blockshock.saved import Run, differences, judges, section_of, several
from blockshock.saved.pairs import Ratio, change_of_blocks

SAME = "~"
"""What stands for a change that is none: its interval holds none."""
FEWEST = 3
"""Builds, or blocks, from which on an interval is narrow enough to be worth a look: of two it is 18 times as wide as
they lie apart."""
FEW = "few builds"
UNITS = {False: "p50 in ms", True: "ratios of verdicts"}


@dataclass(frozen=True)
class Change:
    """What became of one benchmark from one run to another.

    Attributes:
        before, after: p50 in ms, or the ratio of a verdict.
        ratio: after over before, with its 95 % interval; None where nothing gives one.
        few: whether the interval is of so few builds that its ends say nothing.
        alike: whether both ran on as many ranks; else it is not the same thing that changed.
    """

    before: float
    after: float
    ratio: Ratio | None
    few: bool = False
    alike: bool = True

    @property
    def value(self) -> float:
        return self.after / self.before

    @property
    def differs(self) -> bool:
        return self.value != 1 if self.ratio is None else self.ratio.differs


def _common(found: list[dict[str, Info]]) -> list[str]:
    first, *others = found
    return [name for name in first if all(name in other for other in others)]


def _measured(run: Run, judged: bool) -> dict[str, Info]:
    """By name what was timed, or the verdicts whose ratio is one of times; nothing that is wrong."""
    infos = {record["name"]: record["extra_info"] for record in run.records}
    return {name: info for name, info in infos.items() if _is_measured(info, judged) and not info.get("wrong")}


def _is_measured(info: Info, judged: bool) -> bool:
    return judges(info) is not None if judged else "p50_ms" in info and "verdict" not in info


def changes(before: Run, after: Run, judged: bool = False) -> dict[str, Change]:
    """Of each benchmark that both timed, or of each verdict that both came to."""
    old, new = _measured(before, judged), _measured(after, judged)
    key = "ratio" if judged else "p50_ms"
    found = {}
    for name in _common([old, new]):
        one, other = old[name], new[name]
        interval, alike = _interval(one, other, key), one["ranks"] == other["ranks"]
        found[name] = Change(one[key], other[key], interval, _few(one, other), alike)
    return found


def unlike(runs: list[Run]) -> str | None:
    """How many benchmarks are in all runs and ran on other numbers of ranks in some; None where none did."""
    found = [changes(runs[0], run, judged) for run in runs[1:] for judged in UNITS]
    names = {name for other in found for name, change in other.items() if not change.alike}
    if not names:
        return None
    told = ", ".join(f"{_ranks(run)} in {run.name}" for run in runs)
    return f"ranks: {told}: {several(len(names), 'benchmark')} ran on unlike numbers, and changed by that too"


def _ranks(run: Run) -> int:
    return max((info["ranks"] for info in run.infos), default=0)


def _interval(before: Info, after: Info, key: str) -> Ratio | None:
    """Of blocks, or of builds' medians, around the change of what is shown: Student's, of logarithms."""
    try:
        found = change_of_blocks(_blocks(before), _blocks(after))
    except ValueError:
        return None  # a single build, or none that was saved
    value = after[key] / before[key]
    return Ratio(value, value * found.low / found.value, value * found.high / found.value)


def _few(*infos: Info) -> bool:
    return any(len(_blocks(info)[0]) < FEWEST for info in infos)


def _blocks(info: Info) -> Any:
    """As of ``pairs.Pair``; of one thing alone the second of the pair is one second."""
    for pair in (info.get("blocks") or {}).values():
        return pair["first"], pair["second"], pair["pilot"]
    builds = info.get("builds_p50_ms") or ()
    return [[ms] for ms in builds], [[1.0] for _ in builds]


def across(runs: list[Run], judged: bool = False) -> Table:
    """The table, of times or of verdicts: each run beside the first, by the change of the last, the geometric mean
    below."""
    found = [changes(runs[0], run, judged) for run in runs[1:]]
    names = [name for name in found[0] if all(name in other for other in found)]
    shown = ".3f" if judged else ".4f"
    title = (
        f"{UNITS[judged]}, {' → '.join(run.name for run in runs)}: {several(len(names), 'benchmark')} in all of them"
    )
    table = Table(title, "across", (Column("benchmark"), Column("before", shown)))
    for run in runs[1:]:
        named = f" {run.name}" if len(runs) > 2 else ""
        table.columns += (Column(f"after{named}", shown), Column(f"change{named}", "+.1%"), Column("95 % interval"))
    for name in sorted(names, key=lambda name: _place(found[-1][name]), reverse=True):
        of_name = [other[name] for other in found]
        cells = (cell for change in of_name for cell in _cells(change))
        table.rows.append((name, of_name[0].before, *cells))
    if names:
        table.rows.append(_geomean([[other[name] for name in names] for other in found]))
    table.notes += [*_notes(runs, found, judged), *flushes(runs)]
    return table


def _place(change: Change) -> float:
    return math.log(change.value) if change.differs else 0.0


def _cells(change: Change) -> tuple[Cell, ...]:
    value = change.value - 1 if change.differs else SAME
    if change.ratio is None:
        return change.after, value, None
    interval = FEW if change.few else f"{change.ratio.low - 1:+.1%} to {change.ratio.high - 1:+.1%}"
    return change.after, value, interval


def _geomean(found: list[list[Change]]) -> tuple[Cell, ...]:
    """Of what is before, and of each run after it; no interval, for the benchmarks are no sample of anything."""
    before = statistics.geometric_mean(change.before for change in found[0])
    after = [statistics.geometric_mean(change.after for change in changes) for changes in found]
    return ("geomean", before, *(cell for mean in after for cell in (mean, mean / before - 1, None)))


def _notes(runs: list[Run], found: list[dict[str, Change]], judged: bool) -> Iterator[str]:
    every = [change for other in found for change in other.values()]
    if any(change.ratio for change in every):
        unit = "blocks" if judged else "builds' medians"
        yield f"intervals: Student's over {unit}, without what differs from session to session. {SAME}: no change"
    if bare := sum(change.ratio is None for change in every):
        yield f"{bare} without an interval: a single build, or none, was saved"
    if few := sum(change.ratio is not None and change.few for change in every):
        yield f"{FEW}: {few} with fewer than {FEWEST}, whose interval is too wide to show"
    if wrong := sum(_is_measured(info, judged) and bool(info.get("wrong")) for run in runs for info in run.infos):
        yield f"{several(wrong, 'result is', 'results are')} WRONG, and compared with nothing"
    for run in runs[1:]:
        old, new = _measured(runs[0], judged), _measured(run, judged)
        if alone := [
            f"{len(one.keys() - other.keys())} only in {name}"
            for one, other, name in ((old, new, runs[0].name), (new, old, run.name))
            if one.keys() - other.keys()
        ]:
            yield ", ".join(alone)
    ranks = [str(_ranks(run)) for run in runs]
    different = [*differences(runs), *([f"ranks {' and '.join(ranks)}"] if len(set(ranks)) > 1 else [])]
    if not judged and different:
        yield f"different: {'; '.join(different)}"
    if not judged and all(any(section_of(info) == "learning" for info in run.infos) for run in runs):
        yield "what was learned is not set beside each other: --tables learning has it, of each run"


def slower(runs: list[Run], share: float) -> list[str]:
    """The benchmarks and verdicts of the runs after the first that are slower by more than that share beyond doubt:
    all of their interval is, on as many ranks."""
    found = []
    for run in runs[1:]:
        for judged in UNITS:
            for name, change in changes(runs[0], run, judged).items():
                if change.alike and change.ratio is not None and change.ratio.low > 1 + share:
                    found.append(f"{name} {change.value - 1:+.1%} in {run.name}")
    return found


def surely(runs: list[Run]) -> int:
    """How many changes have an interval, on as many ranks."""
    return sum(
        change.alike and change.ratio is not None
        for run in runs[1:]
        for judged in UNITS
        for change in changes(runs[0], run, judged).values()
    )


def spreads(runs: list[Run]) -> Iterator[str]:
    """Of each use that all runs have, its number in each of them, and how far they lie apart at one point.

    Of the same row in all of them, at each point the fastest of these in the first run; of a use of which no row is in
    all, the fastest of each run by its name, and no distance: they are not the same thing.
    """
    found = [{key: {row.label: row for row in rows} for key, rows in asked(run).items()} for run in runs]
    same: dict[tuple[str, str], list[list[Against]]] = defaultdict(list)
    others: dict[tuple[str, str], list[list[Against]]] = defaultdict(list)
    for key in found[0]:
        if all(key in other for other in found):
            beside = [other[key] for other in found]
            shared = [label for label in beside[0] if all(label in rows for rows in beside)]
            if shared:
                label = min(shared, key=lambda label: beside[0][label].ratio)
                same[key[:2]].append([rows[label] for rows in beside])
            else:
                others[key[:2]].append([min(rows.values(), key=lambda row: row.ratio) for rows in beside])
    for use in dict.fromkeys((*same, *others)):
        yield _spread(runs, use, same[use], True) if use in same else _spread(runs, use, others[use], False)


def _spread(runs: list[Run], use: tuple[str, str], points: list[list[Against]], same: bool) -> str:
    method, section = use
    each = []
    for run, rows in zip(runs, zip(*points, strict=True), strict=True):
        of = "" if same else f" ({counted(row.label for row in rows)})"
        each.append(f"{statistics.median(row.ratio for row in rows):.2f} in {run.name}{of}")
    labels = [row.label for row, *_ in points]
    one, over = len(set(labels)) == 1, several(len(points), "point")
    name = labels[0] if same and one else f"{method} ({counted(labels)})" if same else method
    told = f"{name}, {PASSES[section]}: time ÷ best dense {', '.join(each)}, over {over}"
    if not same:
        return f"{told}; no row of it is in {'both' if len(runs) == 2 else 'all of them'}"
    apart = max(max(row.ratio for row in rows) / min(row.ratio for row in rows) - 1 for rows in points)
    return f"{told}; at one point up to {apart:.1%} apart"
