"""The commands that measure a run's points again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import Any

from blockshock.report.tables import Info
from blockshock.saved import COMMANDS, Run, section_of

POINT = {"B": "B", "dtype": "dtype", "workloads": "workload", "methods": "method"}
NETWORK = {"batches": "B", "dtype": "dtype", "networks": "network", "where": "where"}
"""The same of whole networks: a verdict on one is measured beside what else there is of them."""
LEARNING = {"tasks": "workload", "steps": "steps"}
"""The same of what recipes learn."""
FFN = {"B": "B", "dtype": "dtype"}
"""The same of feed-forward blocks, beside their widths."""
UNSIZED = {"networks": NETWORK, "learning": LEARNING}
USUAL = {"cuda": "cuda_graph", "cpu": "sync"}
"""How passes are timed where nothing else is asked for, by device."""
OTHERS = {"optimizers": "optimizer", "seed": "seed"}


def commands(run: Run) -> Iterator[str]:
    """One a section, and of what is learned one for each length. The small cases beside the grid come by themselves,
    and so do the recorded layers' sizes."""
    groups: dict[str, set[tuple[int, int, int]]] = {}
    for record in run.records:
        info = record["extra_info"]
        groups.setdefault(record["group"], set()).add((info["N"], info["K"], info["B"]))
    for section, command in COMMANDS.items():
        rows = [
            record["extra_info"]
            for record in run.records
            if _measured_with(record["extra_info"]) == section
            and (section in ("verdicts", "networks") or len(groups[record["group"]]) == 1)
        ]
        for some in _at_once(rows, section):
            sizes, point = ("", UNSIZED[section]) if section in UNSIZED else _points(some)
            if section == "ffn":
                some = [row for row in some if section_of(row) != "accuracy"] or some
                sizes, point = _widths(some), FFN
            yield f"{command} {sizes}{' '.join(_options(some, point))}"


def _points(rows: list[Info]) -> tuple[str, dict[str, str]]:
    """Where they are, and what else of the point is asked for: of layers by the names of their models, and what a file
    lists by that file alone, for its points are no grid."""
    uses = [use for row in rows for use in row.get("layers") or ()]
    models = list(dict.fromkeys(use["model"] for use in uses))
    if not models:
        return _sizes(rows), POINT
    if any(use["listed"] for use in uses):
        return f"--points={shlex.quote(f'{models[0]}.csv')} ", {
            option: key for option, key in POINT.items() if option != "B"
        }
    return f"--layers {','.join(models)} ", POINT


def _at_once(rows: list[Info], section: str) -> list[list[Info]]:
    """What one command measures: another seed, and recipes that learn another text, or for other steps, take one of
    their own."""
    apart: dict[tuple[Any, ...], list[Info]] = {}
    for row in rows:
        learned = (row["steps"], row.get("corpus")) if section == "learning" else ()
        apart.setdefault((row.get("seed"), *learned), []).append(row)
    return list(apart.values())


def _measured_with(info: Info) -> str | None:
    return "networks" if info.get("network") else "ffn" if info["phase"] == 6 else section_of(info)


def _sizes(rows: list[Info]) -> str:
    sizes = dict.fromkeys((row["N"], row["K"]) for row in rows if row["workload"] != "recorded")
    names = [str(N) if N == K else f"{N}x{K}" for N, K in sorted(sizes)]
    return f"--N {','.join(names)} " if names else ""


def _widths(rows: list[Info]) -> str:
    sizes = sorted({(row["K"], row["N"]) for row in rows})
    names = [str(d) if hidden == 4 * d else f"{d}x{hidden}" for d, hidden in sizes]
    return f"--d {','.join(names)} " if names else ""


def _options(rows: list[Info], point: dict[str, str]) -> Iterator[str]:
    picked = {f"{axis.replace('_', '-')}s": axis for axis in _axes(rows)}
    for option, key in (point | picked | OTHERS).items():
        keys = (key, "rival_method") if key == "method" else (key,)
        found = dict.fromkeys(row[name] for name in keys for row in rows if row.get(name) is not None)
        values = sorted(found) if all(isinstance(value, int) for value in found) else list(found)
        if values:
            yield f"--{option} {','.join(map(str, values))}"
    if files := dict.fromkeys(file for row in rows for file in row.get("extend") or ()):
        yield f"--extend={shlex.quote(','.join(files))}"
    if corpus := next((row["corpus"] for row in rows if row.get("corpus")), None):
        yield f"--corpus={shlex.quote(corpus)}"
    timed = [row for row in rows if "p50_ms" in row]
    others = [row["timing"] for row in timed if row.get("timing") not in (None, USUAL.get(row["device"]))]
    if others:
        yield f"--timing {others[0]}"
    if any(row.get("flush") == "none" for row in timed):
        yield "--warm-l2"
    if any(row.get("keep_full_weight") for row in rows):
        yield "--keep-full-weight"
    if all(row["device"] == "cpu" for row in rows):
        yield "--device cpu"
    yield f"--ranks {max(row['ranks'] for row in rows)}"  # beside which some run on one device


def _axes(rows: list[Info]) -> list[str]:
    """Those whose options ask for what was picked and for no more: where each spec of one goes with a few of another
    alone, as masks do that fit a kernel, the one that is picked later is left to its default."""
    axes: list[str] = []
    for axis in dict.fromkeys(axis for row in rows for axis in row["picks"]):
        picks = [row["picks"] for row in rows if axis in row["picks"]]
        together = {tuple(pick.get(name) for name in (*axes, axis)) for pick in picks}
        every = math.prod(len({pick.get(name) for pick in picks}) for name in (*axes, axis))
        if len(together) == every:
            axes.append(axis)
    return axes
