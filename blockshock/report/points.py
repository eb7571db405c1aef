"""One number for one point, everywhere: what is asked about, over the best dense alternative there, which has one name
for all rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blockshock.report.alike import UNPAIRED, Speed
from blockshock.report.tables import Info, ratio, spread
from blockshock.saved import (
    PHASES,
    Run,
    best_dense,
    in_formats_alone,
    is_alone,
    is_dense,
    judges,
    loss_of,
    section_of,
    sound,
)

PLACE = ("workload", "N", "K", "B", "dtype", "optimizer")
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Against:
    """A row beside the best dense alternative, at one point.

    Attributes:
        section: ``forward``, ``backward`` or ``training``.
        use: what the fastest row is looked for among: its method; or the row itself where rows of one method learn, for
            what one recipe learns another does not.
        rival: label of the best dense alternative there.
        ratio: its time over the rival's: below one is faster. Of the pair of a verdict where there is one, else of the
            medians of the two.
        low, high: the 95 % interval, where it was paired.
        verdict: ``faster``, ``slower``, ``tie`` or ``undecided``; None where the two were not paired.
        scatter: how far the medians of builds lie from that of all, of both together, as shares.
        eager: the ratio of calls that were launched one by one, launch included; None where that was not timed.
        builds: the scatter of the row's own builds; None of a single one.
        loss: what its output loses; None where the run does not say.
    """

    section: str
    use: str
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
    scatter: float = 0.0
    eager: float | None = None
    builds: float | None = None
    loss: float | None = None

    @property
    def speed(self) -> Speed:
        """To be told from other rows at the same point by."""
        interval = None if self.low is None or self.high is None else (self.low, self.high)
        return Speed(self.ratio, self.loss, self.builds, interval)

    @property
    def place(self) -> Place:
        """All that is measured there shares this."""
        return (self.section, *(getattr(self, name) for name in PLACE))


def pays(one: Against) -> bool | None:
    """Whether it is faster there; None where that is undecided."""
    if one.verdict is not None:
        return None if one.verdict == "undecided" else one.verdict == "faster"
    return None if abs(one.ratio - 1) <= max(UNPAIRED, one.scatter) else one.ratio < 1


def asked(run: Run) -> dict[tuple[Any, ...], list[Against]]:
    """All rows that are asked about, by use, section and point; in the run's order."""
    labels = {info["label"] for info in run.infos if info["role"] == "subject"}
    found: dict[tuple[Any, ...], list[Against]] = defaultdict(list)
    for row in every_row(run.infos).values():
        if row.label in labels:
            found[row.use, *row.place].append(row)
    return found


def every_row(infos: list[Info]) -> dict[tuple[Any, ...], Against]:
    """Each sound row that was timed or judged beside the best dense alternative, by its place and label."""
    (timed, judged), names = _placed(infos), best_names(infos)
    found = {}
    for place in dict.fromkeys((*timed, *judged)):
        rows, verdicts = timed[place], judged[place]
        for label in dict.fromkeys((*rows, *verdicts)):
            row = rows.get(label) or verdicts[label][0]
            best = names.get((place, is_alone(row)))
            pair = next((pair for pair in verdicts[label] if pair["rival"] == best), None)
            one = _against(place[0], row, None if best is None else rows.get(best), pair)
            if one is not None:
                found[(*place, label)] = one
    return found


def best_names(infos: list[Info]) -> dict[tuple[Place, bool], str]:
    """The label of the best dense alternative at each place: for rows on one device that of one device (True), and for
    all others."""
    timed, judged = _placed(infos)
    places = ((place, alone) for place in dict.fromkeys((*timed, *judged)) for alone in (False, True))
    return {at: best for at in places if (best := _best(timed[at[0]], judged[at[0]], at[1])) is not None}


def _placed(infos: list[Info]) -> tuple[dict[Place, dict[str, Info]], dict[Place, dict[str, list[Info]]]]:
    """What was timed at each place, by label, and each row's pairs with dense alternatives."""
    timed: dict[Place, dict[str, Info]] = defaultdict(dict)
    judged: dict[Place, dict[str, list[Info]]] = defaultdict(lambda: defaultdict(list))
    for info in infos:
        if (section := section_of(info) or "") in PHASES.values():
            timed[place_of(section, info)][info["label"]] = info
    kinds = {info["label"]: is_dense(info) for info in infos if "verdict" not in info}
    for (*at, label, rival), pair in pairs(infos).items():
        if kinds.get(rival, pair["rival_role"] == "rival" and pair["rival_promise"] == "dense"):
            judged[tuple(at)][label].append(pair)
    return timed, judged


def _best(rows: dict[str, Info], verdicts: dict[str, list[Info]], alone: bool) -> str | None:
    """The one that pairs looked for and found, of several that of the most; else the fastest by the medians; where none
    was timed that of the most pairs, and of these the one that is hardest to beat."""
    there = [pair for found in verdicts.values() for pair in found if is_alone(pair) == alone]
    beside = next((row for row in (*rows.values(), *there) if is_alone(row) == alone), None)
    fastest = (best_dense(rows.values(), beside) or {}).get("label")
    looked = Counter(
        str(pair["rival"]) for pair in there if _chose(pair) and (fastest is None or fastest in pair["rivals"])
    )
    if looked:
        return max(looked, key=lambda name: (looked[name], name == fastest))
    if fastest is not None or not there or in_formats_alone(rows.values(), beside):
        return fastest
    paired = Counter(str(pair["rival"]) for pair in there)
    hardest = {name: max(float(pair["ratio"]) for pair in there if pair["rival"] == name) for name in paired}
    return max(paired, key=lambda name: (paired[name], hardest[name]))


def pairs(infos: Iterable[Info]) -> dict[tuple[Any, ...], Info]:
    """The sound verdict on two rows at a point, by its place, label and rival; of several the one that looked for the
    best rival, or else the last."""
    found: dict[tuple[Any, ...], Info] = {}
    for info in infos:
        if (section := judges(info)) is not None and sound(info):
            key = (*place_of(section, info), info["label"], info["rival"])
            if key not in found or _chose(info) >= _chose(found[key]):
                found[key] = info
    return found


def _chose(verdict: Info) -> bool:
    return len(verdict.get("rivals") or ()) > 1


def place_of(section: str, info: Info) -> Place:
    """What rows share that are set beside each other."""
    return (section, *(info.get(name) for name in PLACE))


def use_of(row: Info) -> str:
    """What the fastest row is looked for among, as of ``Against``."""
    return str(row["label"] if row["promise"] == "learns" else row["method"])


def _against(section: str, row: Info, best: Info | None, pair: Info | None) -> Against | None:
    told: Info = {"section": section, "use": use_of(row)} | {
        name: row.get(name) for name in ("method", "label", *PLACE)
    }
    told |= {"scatter": (spread(row) or 0.0) + (spread(best or {}) or 0.0), "eager": _eager(row, best)}
    told |= {"builds": spread(row), "loss": None if (loss := loss_of(row)) is None else loss.value}
    if pair is not None:
        interval = {"low": pair["ratio_low"], "high": pair["ratio_high"], "verdict": pair["verdict"]}
        return Against(**told, rival=pair["rival"], ratio=pair["ratio"], **interval)
    if best is None or not sound(row) or "verdict" in row:
        return None
    return Against(**told, rival=best["label"], ratio=row["p50_ms"] / best["p50_ms"])


def _eager(row: Info, best: Info | None) -> float | None:
    ours, theirs = ((info or {}).get("cuda_events_p50_ms") for info in (row, best))
    return ratio(ours, theirs) if ours else None


class Ratios:
    """The numbers of all rows of a run, for tables that have a line for each: of pairs where there are any."""

    def __init__(self, infos: list[Info]) -> None:
        self._pairs, self._rows, self._names = pairs(infos), every_row(infos), best_names(infos)

    def best(self, section: str, row: Info, beside: Iterable[Info]) -> tuple[str, float] | None:
        """The best dense alternative and the ratio to it; of a row that is not sound that of the medians ``beside``."""
        if (found := self._rows.get((*place_of(section, row), row["label"]))) is not None:
            return found.rival, found.ratio
        name = self.name(section, row)
        best = next((info for info in beside if info["label"] == name), None)
        return None if best is None else (best["label"], row["p50_ms"] / best["p50_ms"])

    def name(self, section: str, row: Info) -> str | None:
        """The best dense alternative where that row is."""
        return self._names.get((place_of(section, row), is_alone(row)))

    def over(self, section: str, row: Info, rival: str, rival_ms: float | None) -> float | None:
        """The ratio to a rival; None where that was not timed beside it."""
        pair = self._pairs.get((*place_of(section, row), row["label"], rival))
        return float(pair["ratio"]) if pair else ratio(row["p50_ms"], rival_ms)

    def paired(self, section: str, row: Info) -> bool:
        """Whether its number is that of a pair."""
        found = self._rows.get((*place_of(section, row), row["label"]))
        return found is not None and found.verdict is not None
