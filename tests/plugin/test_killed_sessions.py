"""A session that is killed at any moment loses no benchmark that had finished, and leaves no process behind."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from inner_pytest import start, suite
from processes import ended, left_after, session
from reliability import Record

from blockshock.saved.journal import unfinished_below
from blockshock.saved.recovering import recover

pytestmark = pytest.mark.reliability
OPTIONS = ["--device=cpu", "--N=64", "--B=4", "--cover=grid", "--masks=1100,1010", "--kernels=reference,gathered"]
OPTIONS += ["--workloads=gaussian,uniform,activation_like", "--methods=all", "--benchmark-save=whole"]
OPTIONS += ["-p", "no:cacheprovider"]
COUNT = 33
"""Tests that these options select."""
WITNESS = """
import os, time
import pytest

witness = os.open("witness", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        os.write(witness, report.nodeid.encode() + b"\\n")

def pytest_sessionfinish():
    time.sleep(600)
"""
"""Tells what has passed, and knows nothing of the journal: a write to a file stays when the writer is killed.

A busy machine lets the kill come late: the session does not end before.
"""


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite(tmp_path_factory.mktemp("suite"), "test_phase0_correctness.py", conftest=WITNESS)


def _witnessed(folder: Path) -> set[str]:
    """Full names of the tests that have passed."""
    path = folder / "witness"
    return set(path.read_text().splitlines()) if path.exists() else set()


def _kill(inner: subprocess.Popen[str], folder: Path, passes: int, seconds: float) -> list[int]:
    """Kill a session so many seconds after so many of its tests had passed; which processes do not end then."""
    while len(_witnessed(folder)) < passes and inner.poll() is None:  # as long as that takes here
        time.sleep(0.001)
    assert len(_witnessed(folder)) >= passes
    time.sleep(seconds)
    inner.send_signal(signal.SIGKILL)
    output, _ = inner.communicate()
    assert inner.returncode == -signal.SIGKILL, output
    return left_after(session(inner.pid))


def _recovered(folder: Path) -> set[str]:
    """Full names of the benchmarks in the saved run that the journal becomes."""
    saved = json.loads(recover(unfinished_below(folder / "benchmark_results")[0][0]).read_text())
    return {bench["fullname"] for bench in saved["benchmarks"]}


@pytest.mark.timeout(1800)
def test_a_session_killed_at_a_random_moment_loses_no_finished_benchmark(
    witnessed: Path, tmp_path: Path, soak: bool, injected: Record
) -> None:
    times, moments, lost, orphans = 30 if soak else 1, random.Random(0), 0, 0
    for number in range(times):
        folder = tmp_path / str(number)
        shutil.copytree(witnessed, folder)
        # A benchmark takes some 20 ms: so the moment is anywhere in one, on a machine of any speed. Or in the start.
        passes = 0 if number % 5 == 4 else moments.randint(1, COUNT - 4)
        seconds = moments.uniform(0, 0.03 if passes else 6)
        with ended(start(folder, *OPTIONS, f"--ranks={2 if soak else 1}", new_session=True)) as inner:
            left = _kill(inner, folder, passes, seconds)
        passed = _witnessed(folder)
        missing = passed - _recovered(folder) if passed else set()
        told = f"kill {number}, {seconds:.4f} s after {passes} tests had passed, {len(passed)} at its end"
        assert not missing, f"{told}; lost: {missing}"
        assert not left, f"{told}; still alive: {left}"
        lost, orphans = lost + len(missing), orphans + len(left)
    injected("pytest killed by SIGKILL at a random moment", times=times, lost=lost, orphans=orphans)
