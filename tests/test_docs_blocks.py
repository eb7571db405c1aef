"""docs/block-sparsity.md and its program: the command can be run, and the table says what a run says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from rows import run_of, timed

from blockshock.methods import METHODS
from blockshock.pruning import BLOCK_MASKS, block_choice

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "block-sparsity.md").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "docs"))
from blocks import PUBLISHED, SIZES, TOKENS, break_even, lines, main  # noqa: E402

POINTS = [(4096, 1024), (1024, 4096)]


def rows(ms_of_size: float, **more: Any) -> list[dict[str, Any]]:
    """The dense layers in 1 ms, and blocks of 64 at 0.8 and 0.9 in some."""
    found = []
    for N, K in POINTS:
        for label, level, ms in (
            ("dense_single", None, 1.0),
            ("block_sparse", 0.8, 1.25),
            ("block_sparse", 0.9, ms_of_size),
        ):
            picks = {"block_kernel": "bsr", "block_mask": f"blocks:size=64:level={level}"} if level else {}
            row = timed(label, 64, TOKENS, ms, **more)
            found.append(row | {"N": N, "K": K, "picks": picks, "label": " ".join([label, *picks.values()])})
    return found


def test_the_table_sets_what_was_published_beside_a_run() -> None:
    told = "\n".join(lines(run_of(rows(0.5), gpus=["NVIDIA H100, 1"] * 2)))
    assert told.startswith("run.json, 2 × NVIDIA H100: speed-up over dense, as published → here\n")
    assert "| 4096×1024, 0.9 | 0.007 → – | 0.509 → – | 1.439 → – | 2.202 → 2 |" in told
    assert "| 1024×4096, 0.8 | 0.004 → – | 0.28 → – | 0.795 → – | 1.251 → 0.8 |" in told
    assert "| 4096×1024, pays from level | – | – | – | 0.83 |" in told


def test_wrong_rows_and_other_points_are_left_out() -> None:
    assert not list(lines(run_of([row | {"B": 64} for row in rows(0.5)])))
    assert not list(lines(run_of([row for row in rows(0.5) if row["method"] != "dense_single"])))


@pytest.mark.parametrize(
    ("by_level", "said"),
    [
        ({0.8: 0.5, 0.9: 2.0}, "0.87"),
        ({0.5: 0.5, 0.8: 0.8, 0.9: 1.6}, "0.84"),
        ({0.8: 0.2, 0.9: 0.9}, "above 0.9"),
        ({0.8: 1.2, 0.9: 2.0}, "below 0.8"),
        ({0.9: 1.0}, "below 0.9"),
    ],
)
def test_the_level_from_which_it_pays(by_level: dict[float, float], said: str) -> None:
    assert break_even(by_level) == said


def test_a_run_without_such_rows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = ROOT / "benchmark_results" / "official" / "0013_1xH200-streamed"
    assert main([str(run)]) == 1
    assert "no block-sparse rows of 50432 tokens" in capsys.readouterr().out


def test_its_command_asks_for_the_published_points() -> None:
    (command,) = re.findall(r"^pytest (.*)$", PAGE, re.MULTILINE)
    words = shlex.split(command)
    given = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("-")}
    asked = {(choice.size, choice.level) for choice in map(block_choice, given["--block-masks"].split(","))}  # type: ignore[attr-defined]
    assert asked == {(size, level) for _, _, level in PUBLISHED for size in SIZES}
    assert {tuple(map(int, shape.split("x"))) for shape in given["--N"].split(",")} == set(POINTS)
    assert int(given["--B"]) == TOKENS == 256 * 197
    assert all(METHODS.get(name) for name in given["--methods"].split(","))
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


def test_the_page_has_the_published_table_and_the_parameters() -> None:
    for (N, K, level), published in PUBLISHED.items():
        cells = " | ".join(f"{number:.3f}" for number in published)
        assert f"| {N}×{K}, {level:g} | {cells} |" in PAGE
    for parameter in ("size", "level", "by", "inside"):
        assert f"| `{parameter}` |" in PAGE
    assert all(f"`{name}" in PAGE or f"{name}:" in PAGE for name in BLOCK_MASKS.names())
