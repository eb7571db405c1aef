"""The numbers of the README are those of the saved runs that it names."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from blockshock.errors import InputError, UnknownName
from blockshock.phases.builds import disturbed
from blockshock.saved.results import NotARun, read_run

ROOT = Path(__file__).parent.parent
RUN = "0006_2xH200-full"
TOLD = {
    "answer": "right: 396 of 396 results",
    "verdicts": "| **H1** forward",
    "fastest": "| 16384² | 16 | bf16 | dense_tp_row | ",
    "forward": "| 16384² | 16 | dense_tp_row |",
    "training": "| 8192² | 4096 adamw | dense_tp_row |",
}

sys.path.append(str(ROOT / "docs"))
from readme_numbers import TABLES, written  # noqa: E402


def _block(table: str, run: str = RUN, inside: str = "") -> str:
    return f"before\n<!-- numbers: {table} {run} -->\n{inside}<!-- end -->\nafter\n"


def test_the_readme_says_what_its_runs_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert written(readme) == readme


def test_the_theory_counts_the_disturbed_blocks_of_the_run_that_it_names() -> None:
    said = re.search(r"of (\d+) blocks of `(\S+)` that was so in (\d+)", (ROOT / "docs" / "theory.md").read_text())
    assert said is not None
    run = read_run(ROOT / "benchmark_results" / "official" / said[2])
    pairs = [(pair["first"], pair["second"]) for info in run.infos for pair in info.get("blocks", {}).values()]
    assert sum(len(first) for first, _ in pairs) == int(said[1])
    assert sum(len(disturbed(pair)) for pair in pairs) == int(said[3])


def test_every_table_is_filled_and_stays_what_it_is() -> None:
    readme = "".join(_block(table, inside="old numbers\n") for table in TABLES)
    filled = written(readme)
    assert "old numbers" not in filled
    assert written(filled) == filled
    outside = filled
    for table in TABLES:
        inside = filled.partition(f"<!-- numbers: {table} {RUN} -->\n")[2].partition("<!-- end -->")[0]
        assert TOLD[table] in inside
        outside = outside.replace(inside, "")
    assert outside == "".join(map(_block, TABLES))


@pytest.mark.parametrize(
    ("readme", "error", "says"),
    [
        (_block("speeds"), UnknownName, "'speeds', and there are answer, verdicts, forward, fastest, training"),
        (_block("forward", "0999_none"), NotARun, "0999_none"),
        (_block("forward", ""), InputError, "begins with"),
        (_block("forward").replace("<!-- end -->", "") + _block("answer"), InputError, "ends with"),
    ],
)
def test_what_cannot_be_filled_is_named(readme: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        written(readme)
