"""The answer in a few lines: what ran, was it right, and does what is asked about pay, and how surely?"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.comparison import wide
from blockshock.report.tables import Info, yardsticks
from blockshock.saved import Run, best_dense, dense_beside, faults, or_inf, qualities, section_of, sound, was_checked
from blockshock.saved.pairs import WIDE


def answer(run: Run) -> Iterator[str]:
    """A few lines, or none where there is nothing to say."""
    infos = run.infos
    if not infos:
        return
    machine, first = run.machine, infos[0]
    gpus = Counter(machine.get("gpus", []))
    where = ", ".join(f"{count} × {gpu}" for gpu, count in gpus.items()) if first["device"] == "cuda" else ""
    versions = [
        f"{name} {machine[name]}" for name in ("torch", "nccl", "cusparselt", "git_commit") if machine.get(name)
    ]
    on = where or machine.get("cpu") or "unnamed hardware"
    if (machines := machine.get("machines") or 1) > 1:
        on = f"{machines} machines, the first with {on}"
    ranks = max(info["ranks"] for info in infos)  # some of them run on one alone
    here = f"{ranks} {first['device'].upper()} rank{'s' if ranks > 1 else ''} on {on}"
    yield f"{here}; {', '.join(versions) or 'versions unknown'}"
    yield _right(infos)
    yield from _speeds("forward", [info for info in infos if section_of(info) == "forward"])
    yield from _speeds("training step", [info for info in infos if section_of(info) == "training"])
    yield _judged([info for info in infos if "verdict" in info])
    yield from _lost(qualities(infos))


def _right(infos: list[Info]) -> str:
    """How many of those outputs and gradients that were checked are right; and all that failed, by name."""
    checked = [info for info in infos if "error_ratio" in info and was_checked(info)]
    failed = Counter(info["label"] for info in infos if was_checked(info) and faults(info))
    right = sum(not faults(info) for info in checked)
    told = f"right: {right} of {len(checked)} results that were checked" if checked else "right: nothing was checked"
    names = [f"{label} at {count}" for label, count in failed.most_common()]
    return f"{told}; WRONG: {', '.join(names)}" if names else told


def _speeds(what: str, infos: list[Info]) -> Iterator[str]:
    """A line for each method that is asked about and was timed with rivals."""
    subjects = dict.fromkeys(info["method"] for info in infos if info["role"] == "subject")
    told = [(method, found) for method in subjects if (found := _speed(method, infos))]
    yield from (f"{what}: the fastest {method} takes {found}" for method, found in told)
    if not told:
        yield f"{what}: not timed with its rivals"


def _speed(method: str, infos: list[Info]) -> str:
    """Ratios of its fastest row to its rivals, over all points where both were timed."""
    points: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in infos:
        points[tuple(info.get(key) for key in ("workload", "N", "K", "B", "dtype", "optimizer"))].append(info)
    pairs = [(ours, rows) for rows in points.values() if (ours := fastest(method, rows)) is not None]
    against = [(ours, best) for ours, rows in pairs if (best := best_dense(rows, ours)) is not None]
    found = []
    if against:
        names = Counter(best["label"] for _, best in against)
        where = ", ".join(f"{name} at {count}" for name, count in names.most_common())
        found.append(_told("the best dense alternative's time", [_ratio(*pair) for pair in against], where))
    dense = dense_beside(infos, pairs[0][0]) if pairs else []
    # Of a single alternative all is said: it is the best.
    for rival in yardsticks(dense) if len({row["label"] for row in dense}) > 1 else ():
        ratios = [_ratio(ours, row) for ours, rows in pairs for row in rows if row["label"] == rival and sound(row)]
        if ratios:
            found.append(_told(f"{rival}'s time", ratios))
    return ", ".join(found)


def fastest(method: str, rows: list[Info]) -> Info | None:
    """Of a method at one point; without those that train on stale weights, and without what is wrong."""
    ours = [row for row in rows if row["method"] == method and sound(row)]
    return min(ours, key=lambda row: row["p50_ms"], default=None)


def _ratio(ours: Info, theirs: Info) -> float:
    return float(ours["p50_ms"] / theirs["p50_ms"])


def _told(whose: str, ratios: list[float], where: str = "") -> str:
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} points"
    return f"{statistics.median(ratios):.2f} of {whose} ({spread}{': ' if where else ''}{where})"


def _judged(infos: list[Info]) -> str:
    if not infos:
        return "verdicts: none in this run; `pytest tests/test_hypotheses.py -m bench` makes them"
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    rivals: dict[str, Counter[str]] = defaultdict(Counter)
    lost: dict[str, list[float]] = defaultdict(list)
    for info in infos:
        if not info.get("wrong"):
            lost[info["hypothesis"]] += [info["loses"]["output_error"]] if "loses" in info else []
            counts[info["hypothesis"]][info["verdict"]] += 1
            rivals[info["hypothesis"]][info["rival"]] += 1
    told = [
        f"{name} {', '.join(f'{verdict} at {count}' for verdict, count in found.most_common())} "
        f"(against {', '.join(rival for rival, _ in rivals[name].most_common())}{_losing(lost[name])})"
        for name, found in counts.items()
    ]
    if distrusted := sum(bool(info.get("wrong")) for info in infos):
        told.append(f"{distrusted} left out, whose output is wrong")
    if spans := sum(map(wide, infos)):
        told.append(f"{spans} with an interval wider than a factor of {WIDE:g}")
    return f"verdicts: {'; '.join(told)}"


def _losing(errors: list[float]) -> str:
    """What the output loses, where anything says so."""
    if not errors:
        return ""
    low, high = f"{min(errors):.3f}", f"{max(errors):.3f}"
    return f"; loses {low if low == high else f'{low} to {high}'} of the output"


def _lost(infos: list[Info]) -> Iterator[str]:
    """What weights of their own lose, the least first. It is the same whatever kernel multiplies by them."""
    errors: dict[str, list[float]] = defaultdict(list)
    for info in infos:
        picked = (spec for axis, spec in info["picks"].items() if axis != "kernel")
        errors[" ".join([info["method"], *picked])].append(info["quality"]["output_error"])
    if errors:
        told = sorted(errors, key=lambda name: or_inf(statistics.median(errors[name])))
        yield f"quality: {', '.join(f'{name}{_losing(errors[name])[1:]}' for name in told)}"
