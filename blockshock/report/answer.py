"""The answer in a few lines: what ran, was it right, and does Block-Shock pay, forward, in training, and how surely?"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.results import Run
from blockshock.report.sections import section_of
from blockshock.report.tables import STALE, Info

RIVALS = {"dense_tp_row": "tensor parallelism", "dense_single": "one dense device"}


def answer(run: Run) -> Iterator[str]:
    """Five lines, or none where there is nothing to say."""
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
    yield f"{first['ranks']} {first['device'].upper()} ranks on {on}; {', '.join(versions) or 'versions unknown'}"
    yield _right(infos)
    yield _speed("forward", [info for info in infos if section_of(info) == "forward"])
    yield _speed("training step", [info for info in infos if section_of(info) == "training"])
    yield _judged([info for info in infos if "verdict" in info])


def remarks(run: Run) -> Iterator[str]:
    """What is not in the report, and what a reader must know of how the run was put together."""
    if not run.records:
        yield "nothing in it can be shown"
    for name, count in run.left_out.items():
        yield f"left out: {count} results that do not say their {name}, of another version it seems"
    if disturbed := sum("clock" in info for info in run.infos):
        yield f"{disturbed} results were measured while the machine was suspended or its clock was set: † marks them"
    yield from run.notes


def _right(infos: list[Info]) -> str:
    checked = [info for info in infos if "error_ratio" in info]
    right = [i for i in checked if i["error_ratio"] <= (i.get("error_ratio_limit") or 2) and i["of_bound"] <= 1]
    same = [info for info in right if info["same_on_ranks"] and info["same_again"]]
    return (
        f"right: {len(same)} of {len(checked)} results that were checked" if checked else "right: nothing was checked"
    )


def _speed(what: str, infos: list[Info]) -> str:
    """Ratios of the fastest Block-Shock row to its rivals, over all points where both were timed."""
    points: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in infos:
        points[tuple(info.get(key) for key in ("workload", "N", "K", "B", "dtype", "optimizer"))].append(info)
    found = []
    for rival, name in RIVALS.items():
        ratios = [ratio for rows in points.values() if (ratio := _best_ratio(rows, rival)) is not None]
        if ratios:
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            found.append(f"{statistics.median(ratios):.2f} of {name}'s time ({spread} over {len(ratios)} points)")
    return (
        f"{what}: the fastest block_shock takes {', '.join(found)}" if found else f"{what}: not timed with its rivals"
    )


def _best_ratio(rows: list[Info], rival: str) -> float | None:
    """Of the fastest row; without those that train on stale weights between compressions."""
    fresh = [row for row in rows if STALE not in (row.get("storage") or "")]
    ours = [row["p50_ms"] for row in fresh if row["method"] == "block_shock"]
    theirs = [row["p50_ms"] for row in rows if row["method"] == rival]
    return min(ours) / theirs[0] if ours and theirs else None


def _judged(infos: list[Info]) -> str:
    if not infos:
        return "verdicts: none in this run; `pytest tests/test_hypotheses.py -m bench` makes them"
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for info in infos:
        counts[info["hypothesis"]][info["verdict"]] += 1
    told = [
        f"{name} {', '.join(f'{verdict} at {count}' for verdict, count in found.most_common())}"
        for name, found in counts.items()
    ]
    return f"verdicts: {'; '.join(told)}"
