"""Writes what the texts quote, so that nothing in them is copied by hand: `python docs/generate.py`.

- In README.md each block from `<!-- answer: RUN -->` to `<!-- end -->`: what the report answers on that official run,
  less its passes forward and backward and what a reader of it can do without, and its remarks; from
  `<!-- sample: RUN -->`: how a session that made it would begin to say so on a screen.
- There, in docs and in benchmark_results/README.md, from `<!-- said: NAME -->` to `<!-- end -->`: a number of saved
  runs (`docs/said.py`).
- docs/results.md: `python -m blockshock report --format md` on the official runs, and how time grows with ranks.
- docs/options.md: the options of pytest and of `python -m blockshock`, as their `--help` says them.
- docs/report: the page and the pictures (`docs/report_page.py`).

A test holds the texts to it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from report_page import OFFICIAL, REPORT, ROOT, RUNS, written
from said import said

from blockshock.__main__ import parser
from blockshock.errors import InputError
from blockshock.plugin import options
from blockshock.report import screen
from blockshock.report.answer import answer
from blockshock.report.command import pasted
from blockshock.report.growth import growth_in_ranks
from blockshock.report.models import PASSES
from blockshock.report.remarks import remarks, zeros
from blockshock.report.show import markdown
from blockshock.saved import Run, read_run

RESULTS = (
    *RUNS,
    "0027_4xH200-fused",
    "0039_2xH200-auto",
    "0036_4xH200-auto.json.gz",
    "0040_2xH200-training",
    "0041_2xH200-clock.json.gz",
    "0038_2xH100-random.json.gz",
    "0032_2xH100-auto",
    "0034_2xH100-wide.json.gz",
    "0033_4xH100-auto",
    "0029_2xH100-ways",
    "0020_1xH200-wgmma",
    "0022_1xH200-learning",
    "0023_1xH200-few",
    "0043_1xH200-streamed.json.gz",
    "0044_1xH100-streamed.json.gz",
    "0026_cpu-digits",
    "0019_cpu-quality",
    "0018_1xH200-training",
    "0024_1xH200-blocks",
    "0025_1xH200-networks",
    "0031_1xH100-networks",
    "0028_1xH100-networks",
    "0017_1xH100-formats",
    "0016_1xH200-recipes",
    "0015_1xH200-formats/2_blocks.json.gz",  # whose first part 0017 made anew
    "0012_2xH200-pruned-tp",
    "0010_4xH100",
)
MADE = ("results.md", "options.md")
"""Those that are made whole."""
BLOCK = re.compile(r"(<!-- (?:(answer|sample): (\S+) -->\n|said: ([^>]+) -->)).*?(<!-- end -->)", re.DOTALL)
VERSIONS = r", torch [^ ,]+|, commits? [0-9a-f]{12}(?:, [0-9a-f]{12})*(?=, )"
SPARED = re.compile(rf"{VERSIONS}|; elsewhere not paired: .*|(?<=\. Not paired): .*")
SAMPLE, COLUMNS = 5, 80
"""Lines and characters of it."""


def pages() -> Iterator[tuple[Path, str]]:
    """Each text that is made, or has parts that are, and what it should say."""
    texts = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in MADE]
    for path in (ROOT / "README.md", ROOT / "benchmark_results" / "README.md", *texts):
        text = path.read_text(encoding="utf-8")
        if "<!-- end -->" in text or "<!-- said" in text:
            yield path, with_answers(text)
    yield ROOT / "docs" / "results.md", "\n".join(_results())
    yield ROOT / "docs" / "options.md", "\n".join(_options())


def with_answers(text: str) -> str:
    """The text with every block made anew.

    Raises:
        InputError: a block has no name of a run, or no end; a number has an unknown name.
        NotARun: there is no such run.
    """
    if text.count("<!-- end -->") != len(BLOCK.findall(text)) or text.count("<!--") != 2 * text.count("<!-- end -->"):
        raise InputError("a block begins with `<!-- answer: RUN -->`, sample or said, and ends with `<!-- end -->`")

    def block(match: re.Match[str]) -> str:
        if name := match[4]:
            made = said(name)
        else:
            made = _answered(_official(match[3])) if match[2] == "answer" else _sample(_official(match[3]))
        return f"{match[1]}{made}{match[5]}"

    return BLOCK.sub(block, text)


def _answered(run: Run) -> str:
    """What is answered, and the gist of what a reader must know of the run; each once.

    Passes forward and backward are left to docs/results.md, beside the steps of training that they are part of; and
    versions, and what decides where nothing was paired.
    """
    lines = [line for line in answer(run) if f", {PASSES['backward']}" not in line.partition(":")[0]]
    # All commits are in the first line; of rows that multiply zeros, those matter that a line names.
    unsaid = {remark for remark in zeros(run) if remark.partition(" multipl")[0] not in "".join(lines)}
    told = [remark for remark in remarks(run) if not remark.startswith("parts differ in their commit")]
    lines = [SPARED.sub("", line) for line in lines]
    gists = [gist(remark) for remark in told if remark not in unsaid]
    return "".join(f"- {line}\n" for line in dict.fromkeys((*lines, *gists)))


def gist(remark: str) -> str:
    """Its first sentence, without the names of files: docs/results.md has all of it."""
    return re.sub(r" \([^()]*\.json[^()]*\)", "", remark).partition(". ")[0]


def _sample(run: Run) -> str:
    return "\n".join(("```text", *screen.of_run(run, "", "", COLUMNS)[:SAMPLE], "…", "```", ""))


def _official(name: str) -> Run:
    with contextlib.chdir(ROOT):  # which the run is named from
        return read_run(OFFICIAL / name)


def _results() -> Iterator[str]:
    yield "# Results\n"
    yield "Made by `python docs/generate.py` of the official runs. [`measuring.md`](measuring.md) says how to read it,"
    yield "[its README](../benchmark_results/README.md) which commands made each.\n"
    runs = [_official(name) for name in RESULTS]
    for run in runs:
        yield from pasted([run])
    yield from map(markdown, growth_in_ranks(runs))


class Collected:
    """Stands in for pytest's parser, and keeps the options that it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def getgroup(self, name: str, description: str = "") -> Collected:
        """All groups are this one."""
        return self

    def addoption(self, name: str, **kwargs: Any) -> None:
        """As pytest calls it."""
        about = kwargs["help"]
        if about is not argparse.SUPPRESS:
            takes = kwargs.get("metavar") or ", ".join(kwargs.get("choices") or ())
            self.rows.append((f"{name} {takes}".strip(), about))


def _collected(add: Callable[[Any], object]) -> list[tuple[str, str]]:
    collected = Collected()
    add(collected)
    return collected.rows


def _tests_conftest() -> Any:
    """What adds the options of the suite's own tests."""
    sys.path.insert(0, str(ROOT / "tests"))  # whose modules it imports
    try:
        path = ROOT / "tests" / "conftest.py"
        spec = importlib.util.spec_from_loader("conftest_of_tests", SourceFileLoader("conftest_of_tests", str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "tests"))


def _options() -> Iterator[str]:
    yield "# Options\n"
    yield "Made by `python docs/generate.py` of what `--help` says. A wrong value is an error that names the choices.\n"
    yield "## pytest\n"
    yield "Each is also there as `--blockshock-NAME`: where another plugin has the short name, as pytest-playwright has"
    yield "`--device`, that one keeps it, and the header of the session says so.\n"
    yield "Before a path write `=` and no blank, `--extend=../mine.py`: pytest chooses its settings before it knows any"
    yield "of these options, and takes the path for one of tests. Of one outside this folder it then says"
    yield "`unrecognized arguments`, with the `rootdir` that it took in place of this one.\n"
    yield from _table(_collected(options.add_options))
    yield "\n## pytest, on the suite's own tests\n"
    yield from _table(_collected(_tests_conftest().pytest_addoption))
    for command, rows in filter(lambda found: found[1], _commands()):
        yield f"\n## python -m blockshock {command}\n"
        yield from _table(rows)
    yield ""


def _commands() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each command of `python -m blockshock`, and what it takes."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield name, [(_name(action), action.help or "") for action in command._actions if action.dest != "help"]


def _name(action: argparse.Action) -> str:
    takes = action.metavar or ", ".join(map(str, action.choices or ()))
    return " ".join(filter(None, [*action.option_strings[-1:], str(takes)]))


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    yield "| option | what it does |"
    yield "| --- | --- |"
    for name, about in rows:
        yield f"| `{name}` | {' '.join(about.split()).replace('|', chr(92) + '|').replace('%%', '%')} |"


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
    written(REPORT)
