"""docs/making.md and its program: the page says what was measured, and on a GPU all of it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from gpus import needs_a_gpu

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))
import making  # noqa: E402


def test_the_page_is_made_of_what_was_measured() -> None:
    assert (ROOT / "docs" / "making.md").read_text(encoding="utf-8") == making.page(), "run python docs/making.py"


def test_a_time_is_told_in_copies_with_what_builds_differ_by() -> None:
    times = {"copy": [20.0, 10.0, 10.0], "columns": [15.0, 14.0, 19.0], "tiles, exact": None}
    found = {
        "gpu": "NVIDIA H100",
        "versions": {"torch": "2.11"},
        "commit": "abc",
        "seed": 0,
        "sizes": [{"R": 64, "C": 128, "microseconds": times}],
    }
    told = list(making.lines("one", found))
    assert told[0] == "## one: NVIDIA H100"
    assert "| a copy, µs | 10.0 | |" in told
    assert "| columns | 1.50 ± 0.25 | 1.6 |" in told
    assert "| tiles, exact | – | 3.0 |" in told
    assert "| MVUE along rows | – | 1.5 |" in told, "of a run of before it was measured"


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="on a machine that has one"):
        making.main(["here"])


@pytest.mark.gpu
@needs_a_gpu
def test_all_that_is_measured_runs() -> None:
    for name, call in making.calls(torch.randn(256, 256, device="cuda").bfloat16()).items():
        assert call() is not None, name
