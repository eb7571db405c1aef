"""The estimate of what is left, against sessions that were: on a busy machine, and the official ones on GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockshock.plugin.pace import OTHER, OTHERS_SECONDS, Pace, Usual, usual_seconds
from blockshock.saved.results import read_run

ROOT = Path(__file__).parents[2]
BUSY = json.loads((ROOT / "tests" / "data" / "busy_sessions.json").read_text())
"""Sessions on two cores on which many others ran: kind of each test, N, K, B, and its seconds; None if skipped."""
KINDS = {
    "test_forward_is_right": "correctness_case",
    "test_forward": "forward_case",
    "test_gradient_is_right": "gradient_case",
    "test_backward": "backward_case",
    "test_training_is_dense_equivalent": "trajectory_case",
    "test_training_step": "training_case",
    "test_drift_is_that_of_the_dense_product": "drift_case",
}
START_SECONDS = 18.0
"""Of a session on GPUs: imports, ranks, ceilings."""


@pytest.mark.parametrize("name", BUSY)
def test_on_a_busy_machine_the_estimate_holds_from_three_tenths_of_the_tests_on(name: str) -> None:
    usual = {
        str(number): Usual(kind, OTHERS_SECONDS if kind == OTHER else usual_seconds("cpu", kind, *size))
        for number, (kind, *size, _) in enumerate(BUSY[name])
    }
    pace, left, off = Pace(usual), sum(seconds or 0.0 for *_, seconds in BUSY[name]), []
    for number, (*_, seconds) in enumerate(BUSY[name], start=1):
        pace.done(str(number - 1), seconds)
        left -= seconds or 0.0
        estimate = pace.seconds_left()
        if 0.3 <= number / len(usual) <= 0.66 and estimate is not None:
            off.append(estimate / left)
    assert 1 / 1.5 < off[0] < 1.5
    assert min(off) > 1 / 1.7
    assert max(off) < 1.7


def _seconds(record: dict[str, Any]) -> float:
    info = record["extra_info"]
    claim = f"{'training' if info['optimizer'] else 'forward'} claim"
    kind = KINDS.get(record["name"].partition("[")[0], claim)
    return usual_seconds("cuda", kind, info["N"], info["K"], info["B"])


def _official() -> Iterator[tuple[str, float, float]]:
    """Parts of which the official runs' README says how long they took: the part, these seconds, and the usual ones."""
    text = (ROOT / "benchmark_results" / "README.md").read_text()
    for run, table in re.findall(r"^The parts of `([\w-]+)`, with [^|]*((?:\|.*\n)+)", text, re.MULTILINE):
        for number, took in re.findall(r"^\| (\d+) \| .* \| (\d+) \|$", table, re.MULTILINE):
            (path,) = (ROOT / "benchmark_results" / "official" / run).glob(f"{number}_*")
            yield f"{run}/{path.name}", float(took), sum(map(_seconds, read_run(path).records))


def test_what_is_usual_on_gpus_is_what_official_sessions_took() -> None:
    parts = list(_official())
    assert len(parts) >= 10
    off = {part: (START_SECONDS + usual) / took for part, took, usual in parts}
    assert {part: ratio for part, ratio in off.items() if not 1 / 1.3 < ratio < 1.3} == {}
