"""Results as flat rows: what is nested gets names with dots."""

from __future__ import annotations

from typing import Any

from blockshock.saved import Run


def flat(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of an extra_info, lists included, by name: ``stages.matmul.p50_ms``."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """Every number of every result, one row each, all with the same columns; lists are left out."""
    found = [
        {"run": str(run.path), "test": record["name"], "group": record["group"]} | _numbers(record["extra_info"])
        for run in runs
        for record in run.records
    ]
    names = dict.fromkeys(name for row in found for name in row)
    return [{name: row.get(name) for name in names} for row in found]


def _numbers(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(info).items() if not isinstance(value, list)}
