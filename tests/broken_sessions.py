"""Sessions that died half-way, for tests of what goes on with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite
from pytest_benchmark.utils import get_machine_id

from blockshock.saved import journal

RUNS = Path("benchmark_results") / get_machine_id()
COUNT = 3
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner run is not one of the outer one's xdist workers, where this test may be running."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)  # which takes a second, twice a session


def run_light(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*LIGHT_OPTIONS, *arguments)


def broken(pytester: pytest.Pytester, *arguments: str, passed: int = 1) -> Path:
    """The journal of a session that died once so many of its tests had passed; of what it saved nothing is left."""
    if not (pytester.path / "test_light.py").exists():
        light_suite(pytester.path)
    before = set(RUNS.glob("*.json"))
    run_light(pytester, *arguments)
    folder = max(Path("benchmark_results/journal").iterdir())
    for name in (journal.FINISHED, "recovered"):
        (folder / name).unlink(missing_ok=True)
    for path in set(RUNS.glob("*.json")) - before:
        path.unlink()
    kept, seen = [], 0
    for line in (folder / journal.METRICS).read_text().splitlines():
        kept += [line] if seen < passed else []
        seen += '"passed"' in line
    (folder / journal.METRICS).write_text("\n".join(kept))
    return folder


def said(folder: Path, change: Change) -> None:
    """Change what the session says of itself."""
    told = json.loads((folder / journal.SESSION).read_text())
    change(told)
    (folder / journal.SESSION).write_text(json.dumps(told))


def refused(pytester: pytest.Pytester, folder: Path, *arguments: str) -> str:
    """What a --resume says that goes on with nothing, and leaves the journal as it is."""
    before = (folder / journal.METRICS).read_bytes()
    result = run_light(pytester, "--resume", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (folder / journal.METRICS).read_bytes() == before
    assert not (folder / journal.FINISHED).exists()
    held = journal.hold(folder)
    assert held is not None, "it is let go"
    held.release()
    return "\n".join(line for line in result.errlines + result.outlines if "--resume: " in line)
