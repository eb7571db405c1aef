"""The commands that measure a run's points again."""

from __future__ import annotations

from collections.abc import Iterator

from blockshock.report.tables import Info
from blockshock.saved import COMMANDS, Run, section_of

OPTIONS = {
    "B": "B", "dtype": "dtype", "workloads": "workload", "kernels": "kernel", "optimizers": "optimizer",
    "storages": "storage", "seed": "seed", "ranks": "ranks",
}  # fmt: skip


def commands(run: Run) -> Iterator[str]:
    """One a section. The small cases beside the grid come by themselves, and so do the recorded layers' sizes."""
    groups: dict[str, set[tuple[int, int, int]]] = {}
    for record in run.records:
        info = record["extra_info"]
        groups.setdefault(record["group"], set()).add((info["N"], info["K"], info["B"]))
    for section, command in COMMANDS.items():
        rows = [
            record["extra_info"]
            for record in run.records
            if section_of(record["extra_info"]) == section
            and (section == "verdicts" or len(groups[record["group"]]) == 1)
        ]
        if rows:
            yield f"{command} {_sizes(rows)}{' '.join(_options(rows))}"


def _sizes(rows: list[Info]) -> str:
    sizes = dict.fromkeys((row["N"], row["K"]) for row in rows if row["workload"] != "recorded")
    names = [str(N) if N == K else f"{N}x{K}" for N, K in sorted(sizes)]
    return f"--N {','.join(names)} " if names else ""


def _options(rows: list[Info]) -> Iterator[str]:
    for option, key in OPTIONS.items():
        found = dict.fromkeys(row[key] for row in rows if row.get(key) is not None)
        values = sorted(found) if all(isinstance(value, int) for value in found) else list(found)
        if values:
            yield f"--{option} {','.join(map(str, values))}"
