"""Keeps count of the faults that tests inject and of the inputs that they try; writes `docs/reliability.md` from it.

`pytest --reliability NAME` saves the counts of the session as `docs/reliability/NAME.json`, and the page anew from all
such files. Without the option nothing is written.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from blockshock.machine import environment

FOLDER = Path(__file__).parent.parent / "docs" / "reliability"
FAULT, FUZZED = "reliability: fault", "reliability: fuzzed"
INTRODUCTION = """# Reliability

What happens when something goes wrong, and how often that was tried. The tests wrote this page: `tox run -e soak` on a
CPU, `pytest -m "reliability and gpu2" --reliability NAME` on GPUs. Survived: the test that injected the fault saw what
must happen, and the session went on. Detected: from the fault to the error, the slowest time. Lost: finished benchmarks
that could not be recovered. Orphans: processes that did not end.
"""

Record = Callable[..., None]


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Record:
    """Call it, once what must happen was seen: `injected("a rank raises", seconds=1.2, lost=0, orphans=0)`."""

    def record(
        fault: str, *, times: int = 1, seconds: float | None = None, lost: int | None = None, orphans: int | None = None
    ) -> None:
        counts = {"fault": fault, "times": times, "seconds": seconds, "lost": lost, "orphans": orphans}
        request.node.user_properties.append((FAULT, counts))

    return record


class Ledger:
    """A pytest plugin that collects what the tests of a session recorded."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._faults: dict[str, dict[str, Any]] = {}
        self._fuzzed: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == FAULT:
                self._add(value, report.passed)
            if name == FUZZED:
                topic = report.nodeid.partition("::")[0].rpartition("/")[2]
                self._fuzzed[topic] = self._fuzzed.get(topic, 0) + int(str(value))

    def _add(self, fault: Any, passed: bool) -> None:
        empty = {"injected": 0, "survived": 0, "seconds": None, "lost": None, "orphans": None}
        row = self._faults.setdefault(fault["fault"], empty)
        row["injected"] += fault["times"]
        row["survived"] += fault["times"] * passed
        for name, merge in (("seconds", max), ("lost", sum), ("orphans", sum)):
            if fault[name] is not None:
                row[name] = merge([fault[name], row[name] or 0])

    def pytest_sessionfinish(self) -> None:
        if not self._faults and not self._fuzzed:
            return
        FOLDER.mkdir(exist_ok=True)
        where = ", ".join(environment.gpus()) or f"CPU ranks ({environment.cpu_name()})"
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        told = {"where": where, "versions": versions, "date": f"{date.today()}", "faults": self._faults}
        text = json.dumps(told | {"fuzzed": self._fuzzed}, indent=2, sort_keys=True)
        (FOLDER / f"{self._name}.json").write_text(text + "\n")
        FOLDER.with_suffix(".md").write_text(page())


def page() -> str:
    """The page, from all saved counts."""
    parts = [INTRODUCTION]
    for path in sorted(FOLDER.glob("*.json")):
        saved = json.loads(path.read_text())
        parts.append(f"## {path.stem}: {saved['where']}")
        parts.append(f"{saved['versions']}, {saved['date']}; `reliability/{path.name}`.")
        parts.append(_table("fault | injected | survived | detected, s | lost | orphans", _fault_rows(saved["faults"])))
        if saved["fuzzed"]:
            rows = [*saved["fuzzed"].items(), ("all", sum(saved["fuzzed"].values()))]
            parts.append(_table("fuzzed in | examples", [f"{name} | {count:,}" for name, count in rows]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _fault_rows(faults: dict[str, dict[str, Any]]) -> list[str]:
    def shown(value: Any) -> str:
        return "" if value is None else f"{value:.1f}" if isinstance(value, float) else f"{value:,}"

    columns = ("injected", "survived", "seconds", "lost", "orphans")
    return [" | ".join([name, *(shown(row[column]) for column in columns)]) for name, row in faults.items()]


def _table(header: str, rows: list[str]) -> str:
    rule = "|".join("---" for _ in header.split("|"))
    return "\n".join(f"| {row} |" for row in [header, *rows]).replace("\n", f"\n|{rule}|\n", 1)
