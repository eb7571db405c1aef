"""One number for one point, everywhere: what is asked about, over the best dense alternative there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blockshock.report.tables import Info
from blockshock.saved import PHASES, Run, best_dense, is_dense, judges, section_of, sound

PLACE = ("workload", "N", "K", "B", "dtype", "optimizer")
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Against:
    """A row beside the best dense alternative, at one point.

    Attributes:
        section: ``forward``, ``backward`` or ``training``.
        rival: label of the best dense alternative there.
        ratio: its time over the rival's: below one is faster. Of the pair of a verdict where there is one, else of the
            medians of the two.
        low, high: the 95 % interval, where it was paired.
        verdict: ``faster``, ``slower``, ``tie`` or ``undecided``; None where the two were not paired.
    """

    section: str
    method: str
    label: str
    workload: str
    N: int
    K: int
    B: int
    dtype: str
    optimizer: str | None
    rival: str
    ratio: float
    low: float | None = None
    high: float | None = None
    verdict: str | None = None

    @property
    def place(self) -> Place:
        """All that is measured there shares this."""
        return (self.section, *(getattr(self, name) for name in PLACE))


def against_best(run: Run) -> list[Against]:
    """Of each method that is asked about, in each section and at each point, its fastest row; in the run's order."""
    asked = {info["label"] for info in run.infos if info["role"] == "subject"}
    fastest: dict[tuple[Any, ...], Against] = {}
    for row in every_row(run.infos).values():
        key = (row.method, *row.place)
        if row.label in asked and (key not in fastest or row.ratio < fastest[key].ratio):
            fastest[key] = row
    return list(fastest.values())


def every_row(infos: list[Info]) -> dict[tuple[Any, ...], Against]:
    """Each sound row that was timed or judged beside a dense alternative, by its place and label."""
    timed: dict[Place, list[Info]] = defaultdict(list)
    judged: dict[Place, dict[str, list[Info]]] = defaultdict(lambda: defaultdict(list))
    for info in infos:
        if section := judges(info):
            judged[_place(section, info)][info["label"]].append(info)
        elif (section := section_of(info) or "") in PHASES.values():
            timed[_place(section, info)].append(info)
    kinds = {info["label"]: is_dense(info) for info in infos if "verdict" not in info}
    found = {}
    for place in dict.fromkeys((*timed, *judged)):
        rows = {row["label"]: row for row in timed[place]}
        verdicts = judged[place]
        for label in dict.fromkeys((*rows, *verdicts)):
            row = rows.get(label) or verdicts[label][0]
            best = best_dense(rows.values(), row)
            pair = _pair([one for one in verdicts[label] if kinds.get(one["rival"], True)], best)
            if (one := _against(place[0], row, best, pair)) is not None:
                found[(*place, label)] = one
    return found


def _place(section: str, info: Info) -> Place:
    return (section, *(info.get(name) for name in PLACE))


def _pair(verdicts: Iterable[Info], best: Info | None) -> Info | None:
    """The verdict against the best dense alternative: the one that looked for it, else one whose rival it is."""
    sounds = [info for info in verdicts if sound(info) and info["rival_role"] == "rival"]
    for info in reversed(sounds):
        rivals = info.get("rivals") or {}
        if len(rivals) > 1 and (best is None or best["label"] in rivals):
            return info
    if best is not None:
        return next((info for info in reversed(sounds) if info["rival"] == best["label"]), None)
    # None was timed here: of those that it was paired with the one that is hardest to beat.
    return max(sounds, key=lambda info: float(info["ratio"]), default=None)


def _against(section: str, row: Info, best: Info | None, pair: Info | None) -> Against | None:
    told: Info = {"section": section} | {name: row.get(name) for name in ("method", "label", *PLACE)}
    if pair is not None:
        interval = {"low": pair["ratio_low"], "high": pair["ratio_high"], "verdict": pair["verdict"]}
        return Against(**told, rival=pair["rival"], ratio=pair["ratio"], **interval)
    if best is None or not sound(row) or "verdict" in row:
        return None
    return Against(**told, rival=best["label"], ratio=row["p50_ms"] / best["p50_ms"])
