"""Sweeps: which sizes they stand for, what they refuse, and the line that tells how long they take."""

from typing import Any

import pytest

from blockshock.plugin import sweep

USUAL = {"N": "512", "B": "16"}
NONE: dict[str, str | None] = {"N": None, "B": None}


def test_a_sweep_stands_for_a_range_of_sizes() -> None:
    assert sweep.defaults(None, "cuda", NONE, USUAL) == USUAL
    assert sweep.defaults("N", "cuda", NONE, USUAL) == {"N": sweep.AXES["N"]["cuda"], "B": "64,1024"}
    assert sweep.defaults("B", "cuda", NONE, USUAL) == {"N": "8192", "B": sweep.AXES["B"]["cuda"]}
    both = sweep.defaults("N, B", "cpu", NONE, USUAL)
    assert both == {"N": "128,256,512", "B": "4,16,64"}
    assert sweep.defaults("B", "cpu", {"N": "64", "B": None}, USUAL) == {"N": "64", "B": "4,16,64"}
    assert sweep.defaults(None, "cpu", {"N": "", "B": "8"}, USUAL) == {"N": "", "B": "8"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("K", "--sweep takes N and B, got 'K'"),
        (",", "--sweep is empty. Choices: N, B"),
        ("N", "--sweep N and --N 64 say two things: give one of them"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(asked: str, says: str) -> None:
    with pytest.raises(pytest.UsageError, match=says):
        sweep.defaults(asked, "cpu", {"N": "64", "B": None}, USUAL)


class _Reporter:
    """Keeps what it is told to write."""

    def __init__(self, isatty: bool) -> None:
        self.isatty, self.lines, self.rewritten = isatty, list[str](), list[str]()

    def ensure_newline(self) -> None: ...

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def rewrite(self, line: str, erase: bool) -> None:
        self.rewritten.append(line)


@pytest.mark.parametrize("isatty", [True, False])
def test_progress_is_rewritten_on_a_terminal_and_told_now_and_then_in_a_log(isatty: bool) -> None:
    reporter = _Reporter(isatty)
    progress = sweep.Progress(reporter)
    session: Any = type("Session", (), {"items": [None] * 3})()
    progress.pytest_collection_finish(session)
    for name in "abc":
        progress.pytest_runtest_logfinish(f"tests/test_x.py::test_y[{name}]")
    lines = reporter.rewritten if isatty else reporter.lines
    assert len(lines) == (3 if isatty else 1)
    assert lines[-1] == "sweep 3/3, 0 min 00 s to go: test_y[c]"
    assert progress.line("t", 90.0) == "sweep 3/3, 0 min 00 s to go: t"
    progress._total = 5
    assert progress.line("t", 90.0) == "sweep 3/5, 1 min 00 s to go: t"


def test_nothing_is_told_where_another_process_counts() -> None:
    reporter = _Reporter(isatty=True)
    sweep.Progress(reporter).pytest_runtest_logfinish("t")
    assert reporter.rewritten == []
