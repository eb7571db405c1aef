"""Writes each finished benchmark to a journal at once, and with ``--resume`` goes on where a session broke off."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pytest_benchmark.utils import safe_dumps

from blockshock.measure import Ceilings
from blockshock.plugin import options
from blockshock.plugin.resuming import Resumed, check_tests, take_over
from blockshock.plugin.saving import Saving
from blockshock.plugin.session import decisive, described, tests_of
from blockshock.plugin.settings import Settings
from blockshock.saved import (
    FINISHED,
    METRICS,
    SESSION,
    NoJournal,
    hold,
    next_journal,
    note_saved,
    recover,
    recovered,
    several,
    write_whole,
)


class Writer:
    """A pytest plugin that keeps the journal of one session. The folder is made for the first benchmark.

    Raises:
        pytest.UsageError: ``--resume`` is asked for, and there is nothing to resume, or it ran otherwise.
    """

    def __init__(self, config: pytest.Config, settings: Settings, storage: Path, saving: Saving) -> None:
        self._config, self._saving = config, saving
        self._folder = next_journal(storage, f"{datetime.now():%Y%m%d_%H%M%S}_{os.getpid()}")
        self._decisive = decisive(config, settings)  # now: who edits a file meanwhile runs what it was
        self._tests: dict[str, str] = {}
        self._resumed: Resumed | None = None
        self._as_before = False
        self._to_run: set[str] = set()
        self._measured, self._ended, self._broken, self._told, self._lost = False, False, "", "", ""
        self._left: list[str] = []  # lines that are not on the disk yet
        self._held: FileLock | None = None
        if options.get(config, "--resume"):
            try:
                self._resumed = take_over(config, settings, storage, self._decisive)
            except (NoJournal, pytest.UsageError) as error:
                raise pytest.UsageError(f"--resume: {error}") from None
            self._folder, self._held = self._resumed.journal.folder, self._resumed.held
            self._as_before = saving.take_over(self._resumed.save)

    def describe(self) -> list[str]:
        """For the header: what is resumed."""
        if self._resumed is None:
            return []
        passed = several(len(self._resumed.journal.passed), "test of it passed and is", "tests of it passed and are")
        saved = "; it is saved, as it was to be then" if self._as_before else ""
        return [*self._resumed.passed_over, f"resuming {self._folder}: {passed} not run again{saved}"]

    def benchmark(self, benchmark: Any) -> None:
        """Keep a finished benchmark; it is written with what its test comes to."""
        if benchmark.stats is not None:
            self._measured = True
            self._saving.measured()
            self._left.append(safe_dumps({"benchmark": benchmark.stats.as_dict(include_data=True)}))

    def ceilings(self, ceilings: Ceilings) -> None:
        """Keep the machine's ceilings."""
        self._append({"ceilings": asdict(ceilings)})

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._tests = tests_of(items, config.rootpath)
        if self._resumed is None:
            return
        check_tests(self._resumed.journal, self._tests)
        done = self._resumed.journal.passed
        left = [item for item in items if item.nodeid not in done]
        if len(left) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
            items[:] = left

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._to_run = {item.nodeid for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._to_run.discard(report.nodeid)
        if report.when == "call" and (self._left or (report.passed and self._folder.exists())):
            self._append({"passed": report.nodeid} if report.passed else None)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """What was measured before the session broke off is saved with the rest."""
        if self._resumed is not None:
            now = {bench["fullname"] for bench in output_json["benchmarks"]}
            before = [bench for name, bench in self._resumed.journal.benchmarks.items() if name not in now]
            output_json["benchmarks"] = before + output_json["benchmarks"]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # pytest-benchmark has saved by now. A run of part of the tests, or of none, by -x or --collect-only, is no end.
        nothing_left = self._resumed is not None and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        ended = nothing_left or exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self._ended = ended and not self._to_run and not session.config.option.collectonly
        if self._saving.saved is not None and not self._broken:
            note_saved(self._folder, self._saving.saved)
        if self._ended and self._resumed is not None and self._saving.wanted and not self._measured:
            self._save_what_was_there()
        if nothing_left and self._ended:
            session.exitstatus = pytest.ExitCode.OK
        if self._lost and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _save_what_was_there(self) -> None:
        """pytest-benchmark saves nothing where it measured nothing: the session had died after its last benchmark."""
        try:
            before = recovered(self._folder)
            path = before or recover(self._folder)
        except NoJournal:  # it has ceilings alone
            return
        except OSError as error:
            self._lost = f"{self._folder} ({error.strerror or error})"
        else:
            saved = "what it has was saved before" if before else "what it has is saved now"
            self._told = f"nothing was left to measure of {self._folder}, and {saved}: {path}"

    def pytest_unconfigure(self) -> None:
        if self._ended and self._folder.exists() and not (self._broken or self._failure):
            (self._folder / FINISHED).touch()
        if self._held is not None:
            self._held.release()

    def _append(self, entry: dict[str, Any] | None) -> None:
        # What could not be written is tried again with the next line: a disk that was full may not be for ever.
        self._left += [] if entry is None else [safe_dumps(entry)]
        try:
            if not (self._folder / SESSION).exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._held = self._held or hold(self._folder)  # where the disk was full, it is the second time
                write_whole(self._folder / SESSION, safe_dumps(self._described(), indent=2))
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                # The end of a line goes before it: the last one may have been cut off.
                file.write("".join(f"\n{line}" for line in self._left))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._broken = f"no journal in {self._folder} ({error.strerror or error})"
        else:
            self._left, self._broken = [], ""

    @property
    def _failure(self) -> str:
        return self._saving.failure or self._lost

    def _described(self) -> dict[str, Any]:
        return described(self._config) | self._decisive | {"tests": self._tests}

    @pytest.hookimpl(trylast=True)  # below the tables, where it is seen
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._failure:
            terminalreporter.write_line(f"not saved: {self._failure}; {self._holds()}", red=True)
        elif self._told:
            terminalreporter.write_line(self._told)
        elif self._broken:
            terminalreporter.write_line(f"{self._broken}: if this session dies, it is lost", red=True)

    def _holds(self) -> str:
        """What the journal has of a run that could not be saved."""
        if not (self._folder / METRICS).exists():
            return self._broken
        has = "what finished before it broke off" if self._broken else "it all"
        return f"the journal has {has}: python -m blockshock recover {shlex.quote(str(self._folder))}"
