"""Whose an error is: of one that came through a file of the user's, the user's part of the traceback is what is shown.

Those above are the suite's, and torch's: how it came to call the user's method. ``--full-trace`` shows them all.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from blockshock.ranks import RankError
from blockshock.registry import extensions
from blockshock.registry.installed import packages

FRAME = re.compile(r'^  File "(.+?)", line \d+', re.MULTILINE)
CHAINED = re.compile(r"^(?=Traceback \(most recent call last\):$)", re.MULTILINE)


class Blame:
    """A pytest plugin that shows such errors of tests, and of what makes tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._all = bool(config.getoption("fulltrace", False))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._show(report, call)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self._show(report, getattr(report, "call", None))
        return report

    def _show(self, report: Any, call: Any) -> None:
        if not report.failed or self._all or call is None or call.excinfo is None:
            return
        error = call.excinfo.value
        if isinstance(error, pytest.fail.Exception) and error.__context__ is not None:
            error = error.__context__  # what was refused, and made a failure of
        if text := told(error):
            report.longrepr = f"{text}\n\n--full-trace shows how it came there."


def told(error: BaseException) -> str | None:
    """What it says, and its traceback from the user's first frame on: of an error from a rank, that of the rank. None
    where no frame is one of the user's."""
    raised = error if isinstance(error, RankError) else error.__cause__
    if isinstance(raised, RankError):
        who, _, trace = str(raised).partition("\n\n")
        where = f"On {who.partition(' raised ')[0]}, from"
    else:
        where, trace = "From", "".join(traceback.format_exception(error))
    users = _users()
    if not any(frame[1].startswith(users) for frame in FRAME.finditer(trace)):
        return None
    says = trace.rstrip().rpartition("\n")[2] if raised is error else f"{type(error).__name__}: {error}"
    parts = [_from_users(part, users) for part in CHAINED.split(trace)]
    return f"{says}\n\n{where} the first line of yours on:\n\n{''.join(parts).strip()}"


def _users() -> tuple[str, ...]:
    """How paths of the user's begin: of files that registered something, and of installed packages that do."""
    specs = filter(None, map(find_spec, packages()))
    folders = [os.path.join(folder, "") for spec in specs for folder in spec.submodule_search_locations or ()]
    return (*(file for _, file in extensions()), *folders)


def _from_users(part: str, users: tuple[str, ...]) -> str:
    """One traceback of a chain, without what is above the user's first frame; whole where there is none."""
    first = next((frame for frame in FRAME.finditer(part) if frame[1].startswith(users)), None)
    return part if first is None else f"{part.partition(chr(10))[0]}\n{part[first.start() :]}"


@contextmanager
def refused() -> Iterator[None]:
    """An error of the user's, where there is no test that it could fail, is a usage error."""
    try:
        yield
    except Exception as error:
        if text := told(error):
            raise pytest.UsageError(text) from None
        raise
