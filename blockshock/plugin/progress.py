"""Says what a session is doing: a line that is rewritten on a terminal, a line now and then in a log.

For sessions that run cases on ranks, and for no others. With ``-q`` nothing is said, and under pytest-xdist nothing
beside what that says: its workers have no terminal, and its own process runs no test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest

from blockshock.plugin.pace import Pace, Usual

EVERY_SECONDS = 30.0
"""Between two lines where the output is no terminal."""
SAID_FROM = 0.05
"""The share of the tests from which on an estimate is one: the first ones make what others find made."""
Stage = Callable[[str], AbstractContextManager[None]]
"""Of a session: says what it does beside its tests, as long as it does."""


def silent(text: str) -> AbstractContextManager[None]:
    """Where nothing is to be said."""
    return nullcontext()


class Progress:
    """A pytest plugin that keeps the line.

    Args:
        reporter: pytest's terminal reporter.
        device: the type that the session measures.
        clock: seconds.
    """

    def __init__(self, reporter: Any, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter, self._device, self._clock = reporter, device, clock
        self._verbosity = reporter.config.get_verbosity()
        self._pace: Pace | None = None
        self._done = self._total = 0
        self._started = self._told = self._began = clock()
        self._aside, self._skipped = 0.0, False
        self._said = ""

    @property
    def _live(self) -> bool:
        """Whether there is a line to rewrite. With -v each test has a line of its own."""
        return self._pace is not None and self._reporter.isatty and self._verbosity == 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._verbosity < 0 or not any("row" in getattr(item, "fixturenames", ()) for item in session.items):
            return
        tests = {item.nodeid: Usual.of(_parameters(item), self._device) for item in session.items}
        self._pace, self._total = Pace(tests), len(tests)
        self._started = self._told = self._clock()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began, self._aside, self._skipped = self._clock(), 0.0, False
        if self._live:
            self._rewrite(self.line(nodeid))

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Without a letter a test, which the line has no place for; failures have a line each."""
        if not self._live or not isinstance(report, pytest.TestReport) or hasattr(report, "wasxfail"):
            return None
        if report.failed:
            return ("failed" if report.when == "call" else "error"), "", ""
        return ("" if report.passed and report.when != "call" else report.outcome), "", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._skipped |= report.skipped
        if self._live and report.failed:
            self._rewrite("")
            self._reporter.write(f"\r{'FAILED' if report.when == 'call' else 'ERROR'} {report.nodeid}\n", red=True)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self._pace is None:
            return
        now = self._clock()
        self._done += 1
        self._pace.done(nodeid, None if self._skipped else now - self._began - self._aside)
        if self._live:
            self._rewrite(self.line(nodeid))
        elif now - self._told >= EVERY_SECONDS or self._done == self._total:
            self._write_line(self.line(nodeid))

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Say what is done now beside the tests, and count its time for none of them.

        Args:
            text: what, and behind a colon details, which only a line that is rewritten has.
        """
        began = self._clock()
        if self._pace is not None:
            capture = self._reporter.config.pluginmanager.get_plugin("capturemanager")
            with capture.global_and_fixture_disabled() if capture else nullcontext():
                what = text.partition(":")[0]
                if self._live:
                    self._rewrite(f"blockshock: {text}")
                elif what != self._said:
                    self._write_line(f"blockshock: {what}")
                self._said = what
        yield
        self._aside += self._clock() - began

    def line(self, nodeid: str) -> str:
        """How many are done, since when, how long the rest takes, and which one is or was at work."""
        assert self._pace is not None
        left = self._pace.seconds_left() if self._done >= SAID_FROM * self._total else None
        to_go = "" if left is None else f", about {_clock_time(left)} to go"
        elapsed = _clock_time(self._clock() - self._started)
        return f"{self._done} of {self._total} done in {elapsed}{to_go}: {nodeid.rpartition('::')[2]}"

    def _rewrite(self, line: str) -> None:
        width = self._reporter.config.get_terminal_writer().fullwidth - 1
        self._reporter.rewrite(line if len(line) <= width else f"{line[: width - 1]}…", erase=True)
        self._reporter.flush()

    def _write_line(self, line: str) -> None:
        self._told = self._clock()
        self._reporter.ensure_newline()
        self._reporter.write_line(line)


def _parameters(item: Any) -> dict[str, Any]:
    """What a test is run with, case by case."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def _clock_time(seconds: float) -> str:
    """``0:07``, ``12:40``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
