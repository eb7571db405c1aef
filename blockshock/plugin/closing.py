"""The end of a session: what its answer goes by, which of pytest-benchmark's own tables are shown, and where the
traces lie."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from blockshock.errors import InputError
from blockshock.plugin import options
from blockshock.plugin.row import trace_folder
from blockshock.registry import not_negative
from blockshock.saved import MOST_LOSS, several

ASKED = ("benchmark_verbose", "benchmark_compare", "benchmark_compare_fail", "benchmark_histogram")
"""Options of pytest-benchmark that ask for its tables, or for what goes with them."""


def most_loss(config: pytest.Config) -> float:
    """That a row loses which the answer names as the fastest at a batch size: no setting of what is measured.

    Raises:
        pytest.UsageError: it is no number from 0 up.
    """
    text = options.get(config, "--most-loss")
    try:
        return MOST_LOSS if text is None else not_negative("--most-loss", text)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None


class Closing:
    """A pytest plugin for the last two. Ours say of our benchmarks what pytest-benchmark's tables say, so by default
    those show others' alone; and what was not timed, a row of zeros there, they show in no case."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True)
    def pytest_benchmark_group_stats(self) -> Generator[None, Any, Any]:
        groups = yield
        asked = any(self._config.getoption(option, None) for option in ASKED)
        shown = [(name, [row for row in rows if not _ours(row) or (asked and row["max"])]) for name, rows in groups]
        return [(name, rows) for name, rows in shown if rows]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        folder = trace_folder(self._config)
        if folder.exists():
            count = sum(1 for _ in folder.iterdir())
            terminalreporter.line(f"{several(count, 'trace')}, for Perfetto or Chrome's tracing: {folder}")


def _ours(bench: Any) -> bool:
    return {"phase", "label"} <= (bench["extra_info"] or {}).keys()
