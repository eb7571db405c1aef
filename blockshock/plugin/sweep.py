"""``--sweep N`` and ``--sweep B``: a range of sizes, and a line that says where the sweep is and what it still takes.

What does not fit into memory is skipped with its estimate, as everywhere.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

AXES = {
    "N": {"cpu": "128,256,512", "cuda": "4096,8192,16384,32768,40960,65536,81920"},
    "B": {"cpu": "4,16,64", "cuda": "16,64,256,1024,4096,16384"},
}
BESIDE = {"N": {"cpu": "256", "cuda": "8192"}, "B": {"cpu": "16", "cuda": "64,1024"}}
"""The other axis, where it is not given: few values, for a sweep is long enough."""
EVERY_SECONDS = 10.0
"""Between two lines where the output is no terminal, such as a log."""


def defaults(asked: str | None, device: str, given: dict[str, str | None], otherwise: dict[str, str]) -> dict[str, str]:
    """The values of --N and --B: those given, else those of the sweep, else, where nothing is swept, the usual ones.

    Raises:
        pytest.UsageError: an axis that is none, or one that is swept and given.
    """
    axes = [] if asked is None else [axis.strip() for axis in asked.split(",") if axis.strip()]
    if asked is not None and not axes:
        raise pytest.UsageError(f"--sweep is empty. Choices: {', '.join(AXES)}")
    for axis in axes:
        if axis not in AXES:
            raise pytest.UsageError(f"--sweep takes {' and '.join(AXES)}, got {axis!r}")
        if given[axis] is not None:
            raise pytest.UsageError(f"--sweep {axis} and --{axis} {given[axis]} say two things: give one of them")
    usual = {axis: (AXES if axis in axes else BESIDE)[axis][device] for axis in AXES} if axes else otherwise
    return usual | {axis: text for axis, text in given.items() if text is not None}


class Progress:
    """Tells where a sweep is: rewritten in place on a terminal, a line now and then in a log."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._total = self._done = 0
        self._started = self._told = time.monotonic()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total, self._started = len(session.items), time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._done += 1
        live, now = self._reporter.isatty, time.monotonic()
        if not self._total:
            return  # another process collects and counts
        if not live and now - self._told < EVERY_SECONDS and self._done < self._total:
            return
        self._told = now
        line = self.line(nodeid, now - self._started)
        if live:
            self._reporter.rewrite(line, erase=True)
        else:
            self._reporter.ensure_newline()
            self._reporter.write_line(line)

    def line(self, nodeid: str, elapsed: float) -> str:
        """How many are done, how long the rest takes at the pace so far, and which was last."""
        minutes, seconds = divmod(int(elapsed / self._done * (self._total - self._done)), 60)
        where, last = f"sweep {self._done}/{self._total}", nodeid.rpartition("::")[2]
        return f"{where}, {minutes} min {seconds:02} s to go: {last}"
