"""docs/eager.md and its program: the page says what was measured, and each rank measures what is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from blockshock.ranks import Ranks

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))
import eager  # noqa: E402


def test_the_page_is_made_of_what_was_measured() -> None:
    assert (ROOT / "docs" / "eager.md").read_text(encoding="utf-8") == eager.page(), "run python docs/eager.py"


def test_a_time_is_told_in_graphs_with_what_calls_differ_by() -> None:
    spent = {"graph": [10.0, 20.0, 12.0], "eager": [24.0, 18.0, 18.0], "host": [6.0], "compiled": "OutOfMemoryError: x"}
    model = {"N": 64, "B": 8, "layers": 1, "row": "a row", "microseconds": {**spent, "reduce-overhead": [12.0]}}
    found = {"gpu": "2 × NVIDIA H200", "versions": {"torch": "2.11"}, "commit": "abc", "seed": 0, "models": [model]}
    told = list(eager.lines("one", found))
    assert told[0] == "## one: 2 × NVIDIA H200"
    assert told[-1] == "| 64 | 8 | 1 | a row | 12 ± 5 | 1.50 ± 0.25 | 0.50 ± 0.00 | – | – | 1.00 ± 0.00 |"


def test_ranks_measure_what_is_named_and_say_what_there_is_not(cpu_ranks: Ranks) -> None:
    for row in eager.ROWS:
        if row.endswith("auto"):
            continue  # gloo has one way to combine
        for found in cpu_ranks.run(eager.times, row, 64, 8, 2, ("graph", "eager", "host")):
            assert isinstance(found["graph"], str), "a CPU has none"
            assert len(found["eager"]) == len(found["host"]) == eager.TIMES
            assert min(*found["eager"], *found["host"]) > 0


def test_without_two_gpus_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="2 GPUs of one machine"):
        eager.main(["here"])
