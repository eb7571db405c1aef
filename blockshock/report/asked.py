"""The verdicts in words: what was asked, the answer, at how many points, how large the ratio is, against what."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from blockshock.report.alike import Speed, least_losing
from blockshock.report.points import place_of, use_of
from blockshock.report.tables import Column, Info, Table
from blockshock.report.verdicts import explained, in_words, over, ratio_of, wide
from blockshock.saved import Run, loss_of, or_inf
from blockshock.saved.pairs import WIDE

MOST_NAMES = 4


def verdict_table(run: Run) -> Table | None:
    """A line for each question and use, all points together, of its rows the fastest at each; None of a run without
    verdicts."""
    asked: dict[tuple[str, str, str], list[Info]] = defaultdict(list)
    judged = [info for info in run.infos if "verdict" in info]
    for info in judged:
        if not info.get("wrong"):
            asked[info["hypothesis"], info["statement"], use_of(info)].append(info)
    if not judged:
        return None
    lossy = ["loses"] if any(map(_losses, asked.values())) else []
    names = ("asked", "of", "answer", "points", "time ÷ rival: median, range", *lossy, "rivals")
    table = Table("What was asked, and the answer", "verdicts", tuple(map(Column, names)))
    for (_, statement, use), infos in asked.items():
        rows, infos = len({info["label"] for info in infos}), _fastest(infos)
        points = f"{len(infos)}" if rows == 1 else f"{len(infos)}, the fastest of {rows} rows"
        rivals = counted(info["rival"] for info in infos)
        losses = [_losses(infos)] if lossy else []
        table.rows.append((statement, _of(use, infos), _answer(infos), points, _numbers(infos), *losses, rivals))
    table.notes += _notes(judged)
    return table


def _of(use: str, infos: list[Info]) -> str:
    """What it is about: in networks, which are few points, the row itself where it is one."""
    labels = {info["label"] for info in infos if info.get("network")}
    return labels.pop() if len(labels) == 1 else use


def _fastest(infos: list[Info]) -> list[Info]:
    """Of each point the row of the least ratio: what a use can reach there, as in the answer. Of those that are as fast
    and have the same verdict, the one that loses least."""
    found: dict[tuple[object, ...], list[Info]] = defaultdict(list)
    for info in infos:
        found[_place(info)].append(info)
    named = [_named(rows) for rows in found.values()]
    return [info for info in infos if any(info is one for one in named)]


def _named(rows: list[Info]) -> Info:
    said = min(rows, key=lambda info: info["ratio"])["verdict"]
    return least_losing((info for info in rows if info["verdict"] == said), _speed)


def _speed(info: Info) -> Speed:
    loss = loss_of(info)
    interval = (info["ratio_low"], info["ratio_high"])
    return Speed(info["ratio"], None if loss is None else loss.value, interval=interval)


def _place(info: Info) -> tuple[object, ...]:
    return (*place_of("verdicts", info), info.get("where"))


def _numbers(infos: list[Info]) -> str:
    """The ratio, said what of where it is not of two times alone; of networks these too."""
    kind, numbers = ratio_of(infos[0]), median(info["ratio"] for info in infos)
    parts = {"whole": "network", "layers": "linears"} if infos[0].get("network") else {}
    told = [f"{kind}: {numbers}" if kind else numbers]
    for word, name in parts.items():
        if found := [ratio for info in infos if (ratio := over(info, name)) is not None]:
            told.append(f"{word} {median(found)}")
    return "; ".join(told)


def _losses(infos: list[Info]) -> str | None:
    """What these rows lose, in each measure; None where W is kept, or the run does not say."""
    found: dict[str, list[float]] = defaultdict(list)
    for loss in filter(None, map(loss_of, infos)):
        if loss.value:
            found[loss.of].append(loss.value)
    return "; ".join(f"{median(values)} {measure}" for measure, values in found.items()) or None


def _answer(infos: list[Info]) -> str:
    counts = Counter(map(in_words, infos)).most_common()
    if len(counts) == 1:
        return f"{counts[0][0]}, at all {len(infos)}" if len(infos) > 1 else counts[0][0]
    return ", ".join(f"{answer} at {count}" for answer, count in counts)


def _notes(judged: list[Info]) -> Iterable[str]:
    margins = spanned((info["margin"] for info in judged), ".0%")
    yield f"yes: all of its 95 % interval is below one by more than {margins}; no: above; no difference: within that"
    yield from explained(judged)
    if wrong := sum(bool(info.get("wrong")) for info in judged):
        yield f"{wrong} left out, whose output is wrong"
    if spans := sum(map(wide, judged)):
        yield f"{spans} with an interval wider than a factor of {WIDE:g}: measure again"


def median(ratios: Iterable[float]) -> str:
    """The median and the range of ratios; of one just that."""
    found = list(ratios)
    middle, ends = f"{statistics.median(found):.2f}", spanned(found)
    return middle if middle == ends else f"{middle}, {ends}"


def spanned(numbers: Iterable[float], form: str = ".2f") -> str:
    """A range, from the least to the most; one number where they read the same."""
    found = sorted(numbers, key=or_inf)
    return "–".join(dict.fromkeys(format(number, form) for number in (found[0], found[-1])))


def counted(names: Iterable[str]) -> str:
    """Names, with how often each; the most frequent first, and not too many."""
    found = Counter(names).most_common()
    if len(found) == 1:
        return found[0][0]
    told = [f"{name} at {count}" for name, count in found[:MOST_NAMES]]
    more = [f"others at {sum(count for _, count in found[MOST_NAMES:])}"] if len(found) > MOST_NAMES else []
    return ", ".join(told + more)
