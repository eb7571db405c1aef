"""Saves the runs of ``--benchmark-autosave`` and ``--benchmark-save`` whole or not at all, and says what went wrong.

pytest-benchmark writes a run in place: a full disk or a kill leaves half a file. Its storage can be chosen by name only
among its own, and hooks change what is saved, not how. So its session, a plugin that it registers, is given a storage
that differs from its own in how it saves, and in nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.storage.file import FileStorage
from pytest_benchmark.utils import safe_dumps

from blockshock.saved import next_run, write_whole


class WholeRuns(FileStorage):
    """pytest-benchmark's storage of runs in files. A run that cannot be saved is no exception: ``failure`` says why."""

    saved: Path | None = None
    failure = ""

    def save(self, output_json: dict[str, Any], save: str) -> None:
        """Save a run as the next of this machine, in a file of that name."""
        path = next_run(self.get(""), save)
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        try:
            write_whole(path, safe_dumps(output_json, ensure_ascii=True, indent=4))
        except OSError as error:
            self.failure = f"{shown} ({error.strerror or error})"
            return
        self.saved = shown
        self.logger.info(f"Saved benchmark data in: {path}")


class Saving:
    """A pytest plugin that puts the storage in its place, and fails a session whose run could not be saved."""

    def __init__(self, config: pytest.Config) -> None:
        self._name = name_of_run(config)
        self._once_measured = False
        self._benchmarks: Any = None
        self._storage: WholeRuns | None = None

    def take_over(self, name: str | None) -> bool:
        """Save the run by this name if the session is not to save it anyway; whether it would not. But only once
        something is measured: pytest-benchmark would say that it saves nothing, where all that there is lies elsewhere.
        """
        taken = name is not None and self._name is None
        self._name = name if taken else self._name
        self._once_measured = True
        return taken

    def measured(self) -> None:
        """There is something to save."""
        if self._benchmarks is not None:
            self._benchmarks.save = self._name

    @property
    def wanted(self) -> bool:
        """Whether the run is to be saved."""
        return self._name is not None

    @property
    def saved(self) -> Path | None:
        """The run that this session saved."""
        return self._storage.saved if self._storage else None

    @property
    def failure(self) -> str:
        """The run that it could not save, and why; empty if there is none."""
        return self._storage.failure if self._storage else ""

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Raises pytest.UsageError where a run is to be saved and cannot be: now, not after an hour of measuring."""
        benchmarks = self._benchmarks = session.config.pluginmanager.get_plugin("pytest-benchmark")
        if benchmarks is not None and self._once_measured:
            benchmarks.save = benchmarks.autosave = None
        if benchmarks is None or type(benchmarks.storage) is not FileStorage:
            return  # a database, which takes a run whole
        given = benchmarks.storage
        self._storage = benchmarks.storage = WholeRuns(given.path, given.logger, given.default_machine_id)
        if self.wanted:
            _check_writable(self._storage.get(""))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.failure and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def name_of_run(config: pytest.Config) -> str | None:
    """By which name ``--benchmark-save`` or ``--benchmark-autosave`` saves the run; None if neither is given."""
    return config.getoption("benchmark_save") or config.getoption("benchmark_autosave")


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = f"{folder} cannot be written to ({error.strerror or error})"
        raise pytest.UsageError(f"runs cannot be saved: {why}. Choose another --benchmark-storage") from None
