"""Two runs or more beside each other, each against the first: what changed, by how much, and how surely."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blockshock.report.remarks import flushes
from blockshock.report.tables import Cell, Column, Info, Table
from blockshock.saved import HOW, Run, differences, judges, section_of, several, ways, ways_apart
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
        unlike: in what of how it was measured both differ, as of ``HOW``; then it is not the same thing that changed.
    """

    before: float
    after: float
    ratio: Ratio | None
    few: bool = False
    unlike: tuple[str, ...] = ()

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
    """Of each benchmark that both timed, or of each verdict that both came to, on a pair with the same rival."""
    old, new = _measured(before, judged), _measured(after, judged)
    key = "ratio" if judged else "p50_ms"
    found = {}
    for name in _common([old, new]):
        one, other = old[name], new[name]
        if one.get("rival") == other.get("rival"):
            interval = _interval(one, other, key)
            found[name] = Change(one[key], other[key], interval, _few(one, other), ways_apart(one, other))
    return found


def other_rivals(before: Run, after: Run) -> list[str]:
    """The verdicts that both came to, each on a pair with another rival: their ratios are of two things."""
    old, new = _measured(before, True), _measured(after, True)
    return [name for name in _common([old, new]) if old[name]["rival"] != new[name]["rival"]]


def unlike(runs: list[Run]) -> Iterator[str]:
    """How many benchmarks are in all runs and were measured in other ways in some, for each thing that they differ
    in."""
    found = [changes(runs[0], run, judged) for run in runs[1:] for judged in UNITS]
    for what, called in HOW.items():
        names = {name for other in found for name, change in other.items() if what in change.unlike}
        if not names:
            continue
        infos = [[one["extra_info"] for one in run.records if one["name"] in names] for run in runs]
        told = ", ".join(f"{_way(run, what, some)} in {run.name}" for run, some in zip(runs, infos, strict=True))
        how = "ran on unlike numbers" if what == "ranks" else "were measured in unlike ways"
        yield f"{called}: {told}: {several(len(names), 'benchmark')} {how}, and changed by that too"


def _way(run: Run, what: str, infos: list[Info]) -> str:
    """What some results of a run say of it; of ranks, which some share, the most of the run."""
    return str(_ranks(run)) if what == "ranks" else " and ".join(ways(infos, what))


def _differing(runs: list[Run]) -> Iterator[str]:
    """In what the runs as wholes were measured, each in its way."""
    for what, called in HOW.items():
        found = [_way(run, what, run.infos) for run in runs]
        if len(set(filter(None, found))) > 1:
            yield f"{called} {' and '.join(found)}"


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
    if others := len({name for run in runs[1:] for name in other_rivals(runs[0], run)}) if judged else 0:
        yield f"{several(others, 'verdict is', 'verdicts are')} of another rival in one of them, and not compared"
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
    if not judged and (different := [*differences(runs), *_differing(runs)]):
        yield f"different: {'; '.join(different)}"
    if not judged and all(any(section_of(info) == "learning" for info in run.infos) for run in runs):
        yield "what was learned is not set beside each other: --tables learning has it, of each run"
