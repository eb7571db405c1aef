"""Writes each finished benchmark to a journal at once, and with ``--resume`` goes on where a session broke off."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_benchmark
from filelock import FileLock
from pytest_benchmark.utils import get_machine_id, safe_dumps

from blockshock.measure import Ceilings
from blockshock.plugin import options
from blockshock.plugin.saving import Saving
from blockshock.plugin.settings import Settings
from blockshock.saved import (
    FINISHED,
    METRICS,
    SESSION,
    Journal,
    NoJournal,
    hold,
    next_journal,
    read_journal,
    several,
    unfinished,
    write_whole,
)

LATER = ("asked", "ceilings", "extend", "layers", "networks", "where", "batches", "tasks", "steps", "corpus")
"""Settings that sessions of before knew nothing of."""


class Writer:
    """A pytest plugin that keeps the journal of one session. The folder is made for the first benchmark.

    Raises:
        pytest.UsageError: ``--resume`` is asked for, and there is nothing to resume, or it ran with other options.
    """

    def __init__(self, config: pytest.Config, settings: Settings, storage: Path, saving: Saving) -> None:
        self._config, self._settings, self._saving = config, settings, saving
        self._folder = next_journal(storage, f"{datetime.now():%Y%m%d_%H%M%S}_{os.getpid()}")
        self._resumed: Journal | None = None
        self._ended, self._broken = False, ""
        self._left: list[str] = []  # lines that are not on the disk yet
        self._held: FileLock | None = None
        if options.get(config, "--resume"):
            try:
                self._folder, self._held = taken_over(storage)
                self._resumed = resumable(self._folder, settings)
            except (NoJournal, pytest.UsageError) as error:
                self._let_go()
                raise pytest.UsageError(f"--resume: {error}") from None

    def describe(self) -> str | None:
        """For the header: what is resumed."""
        if self._resumed is None:
            return None
        passed = several(len(self._resumed.passed), "test of it passed and is", "tests of it passed and are")
        return f"resuming {self._folder}: {passed} not run again"

    def benchmark(self, benchmark: Any) -> None:
        """Keep a finished benchmark; it is written with what its test comes to."""
        if benchmark.stats is not None:
            self._left.append(safe_dumps({"benchmark": benchmark.stats.as_dict(include_data=True)}))

    def ceilings(self, ceilings: Ceilings) -> None:
        """Keep the machine's ceilings."""
        self._append({"ceilings": asdict(ceilings)})

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = self._resumed.passed if self._resumed else set()
        left = [item for item in items if item.nodeid not in done]
        if len(left) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
            items[:] = left

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and (self._left or (report.passed and self._folder.exists())):
            self._append({"passed": report.nodeid} if report.passed else None)

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """What was measured before the session broke off is saved with the rest."""
        if self._resumed is not None:
            now = {bench["fullname"] for bench in output_json["benchmarks"]}
            before = [bench for name, bench in self._resumed.benchmarks.items() if name not in now]
            output_json["benchmarks"] = before + output_json["benchmarks"]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self._ended = ended or (self._resumed is not None and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED)

    def pytest_unconfigure(self) -> None:
        # Only now, for pytest-benchmark saves when the session finishes: what is marked here is saved.
        if self._ended and self._folder.exists() and not (self._broken or self._saving.failure or self._kept_back):
            (self._folder / FINISHED).touch()
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.release()

    @property
    def _kept_back(self) -> bool:
        """Whether a run was to be saved and was not, for nothing of it was left to measure."""
        return self._resumed is not None and self._saving.wanted and self._saving.saved is None

    def _append(self, entry: dict[str, Any] | None) -> None:
        # What could not be written is tried again with the next line: a disk that was full may not be for ever.
        self._left += [] if entry is None else [safe_dumps(entry)]
        try:
            if not (self._folder / SESSION).exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._held = hold(self._folder)
                write_whole(self._folder / SESSION, safe_dumps(_describe(self._config, self._settings), indent=2))
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                # The end of a line goes before it: the last one may have been cut off.
                file.write("".join(f"\n{line}" for line in self._left))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._broken = f"no journal in {self._folder} ({error.strerror or error})"
        else:
            self._left, self._broken = [], ""

    @pytest.hookimpl(trylast=True)  # below the tables, where it is seen
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._saving.failure:
            terminalreporter.write_line(f"not saved: {self._saving.failure}; {self._holds()}", red=True)
        elif self._kept_back:
            terminalreporter.write_line(f"not saved: nothing was left to measure; {self._holds()}")
        elif self._broken:
            terminalreporter.write_line(f"{self._broken}: if this session dies, it is lost", red=True)

    def _holds(self) -> str:
        """What the journal has of a run that could not be saved."""
        if not (self._folder / METRICS).exists():
            return self._broken
        has = "what finished before it broke off" if self._broken else "it all"
        return f"the journal has {has}: python -m blockshock recover {shlex.quote(str(self._folder))}"


def _describe(config: pytest.Config, settings: Settings) -> dict[str, Any]:
    """What ``session.json`` says; what a saved run needs beside its benchmarks."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    return {
        "arguments": list(config.invocation_params.args),
        "settings": settings.described(),
        "machine_id": get_machine_id(),
        "machine_info": machine_info,
        "commit_info": commit_info,
        "datetime": datetime.now().isoformat(),
        "version": pytest_benchmark.__version__,
    }


def taken_over(storage: Path) -> tuple[Path, FileLock | None]:
    """The folder of the last session that did not end, and what holds it. Raises NoJournal if there is none."""
    while True:
        folder = unfinished(storage)
        held = hold(folder)
        if not (folder / FINISHED).exists():
            return folder, held
        if held is not None:  # it came to its end just before it was held
            held.release()


def resumable(folder: Path, settings: Settings) -> Journal:
    """The journal to go on with, of a session that is held: another one might still write to it.

    Raises:
        NoJournal: there is none.
        pytest.UsageError: it ran with other options.
    """
    journal = read_journal(folder)
    then, now = journal.session.get("settings"), json.loads(json.dumps(settings.described()))
    if not isinstance(then, dict):
        raise pytest.UsageError(f"{folder} does not say with which options it ran: start anew")
    # An axis that was not there then was picked for nothing; and what passes that go backward picked stood apart.
    later = (*(f"{axis}s" for axis in settings.axes), *LATER)
    then = {name: now[name] for name in later} | then
    then["masks"] = then.get("training_masks", then["masks"])
    different = [
        f"{name} {then.get(name)} then, {now.get(name)} now" for name in now if then.get(name) != now.get(name)
    ]
    if different:
        raise pytest.UsageError(f"{folder} ran with other options: {'; '.join(different)}")
    return journal
