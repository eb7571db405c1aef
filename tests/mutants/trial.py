"""Tries mutants: each in a process forked from one that has torch, in a copy of the project that holds its change."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TextIO

import pytest
from mutant import ROOT, Mutant

PRELOADED = ("numpy", "safetensors.torch", "torch", "torch._dynamo", "torch.distributed.tensor.parallel")
COPIED = ("blockshock", "tests", "docs", "conftest.py", "pytest.ini", "pyproject.toml", "README.md", "LICENSE")
BESIDE = {
    "kernels": ("nn/test_stale_weights.py", "nn/test_fuzz_layers.py"),
    "matrices": ("kernels/test_kernels.py", "kernels/test_fuzz_kernels.py"),
    "measure": ("report/test_comparison.py", "phases/test_builds.py"),
    "methods": ("nn/test_linear.py", "nn/test_stale_weights.py", "phases/test_faults.py"),
    "training": ("nn/test_checkpointing.py", "nn/test_linear.py", "nn/test_layer_hooks.py"),
}
"""Tests of other wings that see a wing, by its name."""
OPTIONS = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--device=cpu", "--N=64", "--B=4",
           "--hypothesis-profile=first", "--timeout=120", "-m", "not gpu and not gpu2 and not bench")  # fmt: skip
"""A test takes 12 seconds at most on an idle machine: one that takes ten times as long hangs, and fails."""
PASSED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
HANGS, SECONDS = "did not end", 400
"""The tests of a wing take an eighth of it on an idle machine: a mutant that takes longer hangs, and is found."""


def tests_of(file: str) -> list[str]:
    """The test files that can see a file of the package: those that are named after it, the wing's, the others."""
    wing, _, name = file.partition("/")
    own = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / wing).glob("test_*.py"))
    named = [path for path in own if Path(name).stem.rstrip("s") in path]
    rest = sorted({*own} - {*named}, key=lambda path: "fuzz" in path)
    return [*named, *rest, *(f"tests/{path}" for path in BESIDE[wing])]


class NoJudge(RuntimeError):
    """The tests of a wing fail without any change: they can judge none."""


class Quick:
    """A plugin: what is short comes first, and the first failure ends the process, with no wait for ranks that end.

    Args:
        alone: only tests that start no other process.
        log: of the failure.
    """

    def __init__(self, alone: bool, log: TextIO) -> None:
        self._alone, self._log = alone, log

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        items.sort(key=processes)
        if self._alone:
            items[:] = [item for item in items if processes(item) == 0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(report.longreprtext, file=self._log, flush=True)
            os._exit(pytest.ExitCode.TESTS_FAILED)


def processes(item: pytest.Function) -> int:
    """How many others a test starts: one, two and four ranks; whole programs, which take longest, count as more."""
    if "subprocess" in item.function.__code__.co_names:
        return 5
    if "other_ranks" in item.fixturenames:
        return int(item.callspec.params["other_ranks"])
    return 2 if {"ranks", "groups", "cpu_ranks"} & {*item.fixturenames} else 0


def try_all(mutants: list[Mutant], jobs: int, unseen: Callable[[Mutant], bool]) -> Iterator[tuple[Mutant, str | None]]:
    """Each mutant, and the end of what the test says that fails for it, as they end; ``jobs`` at a time.

    Args:
        unseen: whether no test on a CPU can see the mutant, as a reason says. It counts for nothing, so it
            meets the tests alone that start no other process, which are the many: a reason that is none is found.

    Raises:
        NoJudge: a test fails without any change.
    """
    intact = [Mutant.intact(file) for file in {mutant.wing: mutant.file for mutant in mutants}.values()]
    for module in PRELOADED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        fork = multiprocessing.get_context("fork")
        # Not a Pool: its workers are daemons, which cannot start ranks.
        with ProcessPoolExecutor(jobs, fork, _copy_project, (Path(folder),)) as pool:
            tried = [(mutant, False) for mutant in intact] + [(mutant, unseen(mutant)) for mutant in mutants]
            for done in as_completed([pool.submit(_try, *one) for one in tried]):
                mutant, failure = done.result()
                if mutant not in intact:
                    yield mutant, failure
                elif failure is not None:
                    pool.shutdown(cancel_futures=True)
                    raise NoJudge(f"without any change, of {mutant.wing}: {failure}")


def _copy_project(folder: Path) -> None:
    """Of each worker: a copy of the project, which is where it works."""
    global place
    place = folder / str(os.getpid())
    place.mkdir()
    for name in COPIED:
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, place / name)


def _try(mutant: Mutant, alone: bool) -> tuple[Mutant, str | None]:
    """The mutant, and the end of what is said where a test fails."""
    file = place / "blockshock" / mutant.file
    before = file.read_text(encoding="utf-8")
    file.write_text(mutant.code, encoding="utf-8")
    _forget_compiled(file)
    try:
        return mutant, _failure(tests_of(mutant.file), alone)
    finally:
        file.write_text(before, encoding="utf-8")
        _forget_compiled(file)


def _forget_compiled(file: Path) -> None:
    """Python tells a file that changed by its size and the second: two mutants can share both."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def _failure(tests: list[str], alone: bool = False) -> str | None:
    """The end of what the tests say, run in a process of their own, where one fails or they do not end in time."""
    child = os.fork()
    if child == 0:
        _run(tests, alone)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            said = (place / "log").read_text(encoding="utf-8")[-2000:]
            return None if os.waitstatus_to_exitcode(status) in PASSED else said
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"{HANGS} in {SECONDS} seconds"


def _run(tests: list[str], alone: bool) -> None:
    """Be that process, and end with pytest's status."""
    os.setsid()
    os.chdir(place)
    sys.path.insert(0, str(place))
    os.environ["PYTHONPATH"] = str(place)
    os.environ["TMPDIR"], tempfile.tempdir = str(place), None  # what a killed process leaves there goes with the copy
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each trial compiles all tests anew
    sys.dont_write_bytecode = False
    sys.modules["__main__"] = types.ModuleType("__main__")  # or ranks, which are spawned, would import it
    status = 70
    with open(place / "log", "w", encoding="utf-8", buffering=1) as log:
        for descriptor in 1, 2:
            os.dup2(log.fileno(), descriptor)
        sys.stdout = sys.stderr = log
        try:
            status = pytest.main([*OPTIONS, *tests], [Quick(alone, log)])
        finally:
            os._exit(status)
