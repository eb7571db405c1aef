"""What a reader must know of a run beside its answer: what is left out, and what its numbers contain."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from blockshock.report.limits import limited
from blockshock.report.losing import LEAVE_NO_ZEROS
from blockshock.report.points import every_row
from blockshock.report.tables import Info
from blockshock.report.where import named
from blockshock.saved import Run, bare, is_dense, is_timed, several

DENSE = "dense"
"""The algorithm of rows that multiply all of what they store, one by one."""
WITH_ZEROS = "with zeros"
"""In the algorithm of rows that say themselves that they do."""
MOST_ODD = 3
"""Values that are named, of those that cannot be."""
ONE = "one"
"""The span of rows that run on one device."""
COLLECTIVES = ("all_reduce", "all_gather")
OVERLAPS = "combined by overlap"
"""In the algorithm of rows whose ranks send beside products."""
NOTHING_HIDDEN = 0.85
"""Of what ranks send by itself, so much of it or more is seen in the whole."""
SHORT_MS = 0.2
"""Of a longer time what writing the cache back takes is no part to speak of."""


def remarks(run: Run) -> Iterator[str]:
    """What is not in the report, and what a reader must know of how the run was put together."""
    if not run.records:
        yield "nothing in it can be shown"
    yield from left_out(run)
    if disturbed := sum("clock" in info for info in run.infos):
        what = several(disturbed, "result was", "results were")
        yield f"{what} measured while the machine was suspended or its clock was set: † marks them"
    for kind, records in (
        ("verdict", [record for record in run.records if "verdict" in record["extra_info"]]),
        ("timed result", [record for record in run.records if is_timed(record)]),
    ):
        if anew := sum("saved_as" in record["extra_info"] for record in records):
            what = several(anew, f"{kind} is not what its samples say", f"{kind}s are not what their samples say")
            yield f"{what}: shown is what the samples say, § marks them"
        if believed := sum(map(bare, records)):
            marked = any("believed" in record["extra_info"] for record in records)
            how = "§ marks them" if marked else "as one of an older version is"
            what = several(believed, f"{kind} was", f"{kind}s were")
            yield f"{what} saved without samples: the file is believed, {how}"
    yield from zeros(run)
    yield from untried(run)
    yield from unhidden(run)
    yield from unmeasured(run)
    yield from flushes([run])
    yield from run.notes


def left_out(run: Run) -> Iterator[str]:
    """How many results cannot be shown, and why: what they do not say, or what they say that cannot be."""
    there = Counter(odd.name for odd in run.odd)
    for name, count in run.left_out.items():
        if lacking := count - there[name]:
            what = several(lacking, "result that does", "results that do")
            yield f"left out: {what} not say {'its' if lacking == 1 else 'their'} {name}, of another version it seems"
    of_one = lambda odd: (odd.name, odd.must)  # noqa: E731
    for (name, must), odds in groupby(sorted(run.odd, key=of_one), of_one):
        every = [odd.said for odd in odds]
        said = list(dict.fromkeys(every))
        more = [several(len(said) - MOST_ODD, "other value")] if len(said) > MOST_ODD else []
        told = f"{several(len(every), 'result')} whose {name} is {' or '.join([*said[:MOST_ODD], *more])}"
        yield f"left out: {told}, {f'and must be {must}' if must else 'which cannot be shown'}"


def zeros(run: Run) -> Iterator[str]:
    """Which rows multiply the zeros of a sparse W by a dense product, and how fast that makes them seem."""
    timed = [info for info in run.infos if "p50_ms" in info and info["device"] == "cuda"]
    labels = dict.fromkeys(info["label"] for info in timed if multiplies_zeros(info))
    if not labels:
        return
    ratios = [one.ratio for one in every_row(run.infos).values() if one.label in labels]
    least = f" (time ÷ best dense down to {min(ratios):.2f} here)" if ratios and min(ratios) < 1 else ""
    verb = "multiplies" if len(labels) == 1 else "multiply"
    yield (
        f"{', '.join(labels)} {verb} zeros of W, which GPUs do faster at large points. "
        f"With zeros in their data they draw less power and clock higher{least}: nothing is skipped"
    )


def multiplies_zeros(info: Info) -> bool:
    """Whether a dense product ran over a W in which something that was picked left zeros."""
    algorithm = str(info.get("algorithm"))
    if re.match(r"\w*", algorithm)[0] != DENSE:  # type: ignore[index]
        return False
    return WITH_ZEROS in algorithm or any(axis not in LEAVE_NO_ZEROS for axis in info["picks"])


def untried(run: Run) -> Iterator[str]:
    """Whether what ranks share was set beside dense layers that they share too, and none on one device."""
    several_ranks = [info for info in run.infos if info["span"] != ONE and info["ranks"] > 1]
    shared = {info["label"] for info in several_ranks if info["role"] == "subject"}
    single = {info["label"] for info in run.infos if "p50_ms" in info and info["span"] == ONE and is_dense(info)}
    rows = every_row(run.infos).values()
    asked = {row.place for row in rows if row.label in shared and row.verdict is None}
    if missing := asked - {row.place for row in rows if row.label in single}:
        at = "" if missing == asked else f" at {several(len(missing), 'point')}"
        yield f"no dense layer on one device was timed{at}: it may beat the best dense named here"


def unhidden(run: Run) -> Iterator[str]:
    """Which rows send beside products in vain: as where copies and products had one stream (benchmark_results)."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for info in run.infos:
        if "p50_ms" in info and OVERLAPS in str(info.get("algorithm")):
            seen, alone = (info.get(of, {}).get(part) for of, part in (("stages", "reduce"), ("alone", "combine")))
            if seen and alone and seen["p50_ms"] >= NOTHING_HIDDEN * alone["p50_ms"]:
                found[info["label"]].append((info["N"], info["K"], info["B"]))
    if found:
        told = ", ".join(f"{label} ({named(points)})" for label, points in found.items())
        yield f"overlap hid nothing of what it sends in {told}"


def unmeasured(run: Run) -> Iterator[str]:
    """One line on the ceilings that could not be measured, if any could not, and on the results that have no limit."""
    ceilings = run.machine.get("ceilings") or {}
    without = sum("limits" in info and not limited(info) for info in run.infos)
    have = several(without, "result has", "results have")
    if names := list(dict.fromkeys(_missing(ceilings, run.infos))):
        told = ", ".join(name.removesuffix("_per_s").replace("_", " ") for name in names)
        yield f"ceilings that could not be measured: {told}; {have} no limit, a dash stands for it"


def _missing(ceilings: dict[str, Any], infos: list[Info]) -> Iterator[str]:
    """Names of what is None, and of products in a dtype that was timed; one rank alone has no collectives."""
    several = any(info["ranks"] > 1 for info in infos)
    for name, value in ceilings.items():
        if value is None and (several or name not in COLLECTIVES):
            yield name
        if isinstance(value, dict):
            yield from (f"{name} {part}" for part, number in value.items() if number is None)
    if isinstance(dense := ceilings.get("dense_flops_per_s"), dict):
        without = [info for info in infos if "limits" in info and not limited(info)]
        yield from (f"dense {info['dtype']}" for info in without if info["dtype"] not in dense)


def flushes(runs: list[Run]) -> Iterator[str]:
    """How the cache was emptied before each round, where that is part of what was timed."""
    timed = [info for run in runs for info in run.infos if info["device"] == "cuda" and _is_timed(info)]
    zeroed = sum(_was_zeroed(info) for info in timed)
    if not zeroed:
        return
    yield f"flushed by zeroing: times below {SHORT_MS} ms, and ratios of such, contain microseconds of writing back"
    if clean := sum(info.get("flush") == "clean" for info in timed):
        what = several(zeroed, "result was", "results were")
        yield f"{what} flushed so, {clean} cleanly: not to be compared below {SHORT_MS} ms"


def _is_timed(info: Info) -> bool:
    return "p50_ms" in info or "verdict" in info


def _was_zeroed(info: Info) -> bool:
    """Verdicts say how only since it is done cleanly."""
    return "flush" not in info and bool(info.get("l2_flushed", "verdict" in info))
