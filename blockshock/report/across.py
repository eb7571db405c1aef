"""Two runs or more beside each other, each against the first: what changed, by how much, and how surely."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blockshock.report.remarks import flushes
from blockshock.report.tables import Cell, Column, Info, Table
from blockshock.saved import Run, differences, judges, section_of, several
from blockshock.saved.pairs import WIDE, Ratio, change_of_blocks

SAME, UNDECIDED = "~", "?"
"""What stands for a change that is none, and for one that is undecided: one lies in the interval of both, and much else
in that of the second."""
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

    @property
    def undecided(self) -> bool:
        """Whether nothing can be said of it: one lies in its interval, which is of few builds or wide."""
        return self.ratio is not None and not self.ratio.differs and (self.few or self.ratio.wide)


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
    value = change.value - 1 if change.differs else UNDECIDED if change.undecided else SAME
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
    if undecided := sum(change.undecided for change in every):
        why = f"of fewer than {FEWEST} {unit}, or its ends a factor of more than {WIDE:g} apart"
        yield f"{UNDECIDED}: {undecided} undecided: no change lies in an interval that says nothing, {why}"
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
    all of their interval is, on as many ranks; of a single build, which has none, by a factor that no build is off."""
    found = []
    for run, name, change in _on_as_many_ranks(runs):
        least = change.value / WIDE if change.ratio is None else change.ratio.low
        if least > 1 + share:
            found.append(f"{name} {change.value - 1:+.1%} in {run.name}")
    return found


def untold(runs: list[Run]) -> int:
    """How many changes are undecided, or have no interval, on as many ranks."""
    return sum(change.undecided or change.ratio is None for *_, change in _on_as_many_ranks(runs))


def surely(runs: list[Run]) -> int:
    """How many changes have an interval that says something, on as many ranks."""
    return sum(change.ratio is not None and not change.undecided for *_, change in _on_as_many_ranks(runs))


def _on_as_many_ranks(runs: list[Run]) -> Iterator[tuple[Run, str, Change]]:
    """Of each run after the first its changes, with what changed: those that are of as many ranks."""
    for run in runs[1:]:
        for judged in UNITS:
            for name, change in changes(runs[0], run, judged).items():
                if change.alike:
                    yield run, name, change
