"""Tests that use a GPU never overlap on it: of several workers, of several sessions, and after an owner was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from inner_pytest import LIGHT_OPTIONS, ROOT, light_suite, python_path, start
from processes import lives
from reliability import Record

import blockshock.plugin  # noqa: F401 # loaded before pytester notes what is: torch cannot be loaded twice
from blockshock.machine import environment, turns
from blockshock.plugin.devices import Devices

pytestmark = pytest.mark.reliability
pytest_plugins = ["pytester"]
GPUS = ["GPU-a", "GPU-b"]
TWO_GPUS = f"""
from blockshock.machine import environment

environment.first_gpus = lambda count: {GPUS}[:count]
"""
LOGGED = """
import os, time
import pytest

log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@pytest.mark.parametrize("number", range(12))
def test_logged(number):
    name = f"{os.environ['PYTEST_XDIST_WORKER']} {number}"
    os.write(log, f"begin {name}\\n".encode())
    time.sleep(0.02)
    os.write(log, f"end {name}\\n".encode())

pytestmark = pytest.mark.gpu2
"""
HELD = """
import pytest
from filelock import FileLock
from blockshock.machine import turns

def held():
    return [gpu for gpu in ("GPU-a", "GPU-b") if taken(gpu)]

def taken(gpu):
    lock = FileLock(turns.folder() / f"{gpu}.lock", is_singleton=False)
    try:
        lock.acquire(blocking=False)
    except (TimeoutError, RuntimeError):  # of this very thread it knows, and would not wait
        return True
    lock.release()
    return False

def test_none(): assert held() == []
@pytest.mark.gpu
def test_one(): assert held() == ["GPU-a"]
@pytest.mark.gpu2
def test_two(): assert held() == ["GPU-a", "GPU-b"]
def test_none_again(): assert held() == []
"""
HOLDER = """
import subprocess, sys, time
from blockshock.machine.turns import turn

with turn(sys.argv[1:], print):
    child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that are nobody else's, of a session that is no xdist worker's and holds no GPU."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "locks"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    monkeypatch.setenv(turns.HELD, "")
    monkeypatch.setenv(turns.SHARED, "")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)


@contextmanager
def holder(*gpus: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds GPUs, and one that it started."""
    command, paths = [sys.executable, "-c", HOLDER, *gpus], {"PYTHONPATH": python_path(ROOT)}
    with subprocess.Popen(command, env=os.environ | paths, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            os.kill(child, 9)


def test_the_gpu_of_a_killed_owner_is_free_at_once_whatever_it_started(injected: Record) -> None:
    said: dict[str, float] = {}
    with holder("GPU-a") as (process, child):

        def say(text: str) -> None:
            said[text] = time.monotonic()
            process.kill()

        with turns.turn(["GPU-a"], say):
            waited = time.monotonic() - max(said.values())
            assert lives(child), "and has inherited nothing"
    assert list(said) == [f"waiting for GPU-a, which process {process.pid} holds"]
    injected("owner of a GPU lock killed", seconds=waited, lost=0)


def test_what_a_holder_starts_takes_turns_within_its_own() -> None:
    with turns.turn(["GPU-a"], pytest.fail), turns.turn(GPUS, pytest.fail):
        assert os.environ[turns.HELD] == ",GPU-a,GPU-a,GPU-b"
        for name in ("GPU-a", "GPU-a+", "GPU-b"):
            with pytest.raises((TimeoutError, RuntimeError)):
                FileLock(turns.folder() / f"{name}.lock", is_singleton=False).acquire(blocking=False)
    assert os.environ[turns.HELD] == ""
    with turns.turn(GPUS, pytest.fail):
        pass


def test_what_a_holder_shares_is_nobody_elses_and_free_to_those_it_starts() -> None:
    with turns.shared(["GPU-a"], pytest.fail):
        with pytest.raises((TimeoutError, RuntimeError)):
            FileLock(turns.folder() / "GPU-a.lock", is_singleton=False).acquire(blocking=False)
        with turns.turn(GPUS, pytest.fail), turns.turn(["GPU-a"], pytest.fail):
            assert sorted(path.name for path in turns.folder().glob("*.lock")) == ["GPU-a.lock", "GPU-b.lock"]
    assert not os.environ[turns.SHARED]
    with turns.turn(["GPU-a"], pytest.fail), pytest.raises((TimeoutError, RuntimeError)):
        FileLock(turns.folder() / "GPU-a.lock", is_singleton=False).acquire(blocking=False)


@pytest.fixture
def held(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Tests that look at what is held, on a machine that seems to have two GPUs."""
    monkeypatch.setattr(environment, "first_gpus", lambda count: GPUS[:count])
    light_suite(pytester.path)
    (pytester.path / "test_light.py").write_text(HELD)
    return pytester


def test_a_test_holds_the_gpus_that_it_is_marked_for(held: pytest.Pytester) -> None:
    held.runpytest_inprocess(*LIGHT_OPTIONS).assert_outcomes(passed=4)


def test_a_session_says_what_it_waits_for_and_does_not_count_that_as_the_tests_time(
    held: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, say = 3, Devices._say
    with holder("GPU-b") as (process, _):

        def say_and_wait(devices: Devices, text: str) -> None:
            say(devices, text)
            threading.Timer(limit + 0.5, process.kill).start()

        monkeypatch.setattr(Devices, "_say", say_and_wait)
        result = held.runpytest_inprocess(*LIGHT_OPTIONS, "-k", "two", f"--timeout={limit}")
    result.assert_outcomes(passed=1, deselected=3)
    assert result.stderr.lines.count(f"waiting for GPU-b, which process {process.pid} holds") == 1


def test_gpu_tests_of_several_workers_never_overlap(tmp_path: Path, soak: bool) -> None:
    if not soak:
        pytest.skip("starts four workers: it runs with --soak")
    workers = 4
    folder = light_suite(tmp_path, TWO_GPUS)
    (folder / "test_light.py").write_text(LOGGED)
    inner = start(folder, *LIGHT_OPTIONS, "-n", str(workers))
    output, _ = inner.communicate()
    assert inner.returncode == pytest.ExitCode.OK, output
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    assert [word for word, *_ in lines] == ["begin", "end"] * 12
    assert [name for _, *name in lines[::2]] == [name for _, *name in lines[1::2]]
    assert len({worker for _, worker, _ in lines}) == workers


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-1a", "GPU-2b"]),
        ("", []),
        ("2,0,1", ["GPU-3c", "GPU-1a"]),
        ("GPU-3, 1", ["GPU-3c", "GPU-2b"]),
        ("1,-1,0", ["GPU-2b"]),
        ("MIG-1,0", ["MIG-1", "GPU-1a"]),
    ],
)
def test_the_first_gpus_are_those_of_cuda(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["NVIDIA H200, GPU-1a", "NVIDIA H200, GPU-2b", "NVIDIA H200, GPU-3c"]
    monkeypatch.setattr(environment, "_query", lambda _: rows)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.first_gpus(2) == expected


def test_gpus_of_two_kinds_are_all_held_for_cuda_numbers_them_by_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_query", lambda _: ["NVIDIA T4, GPU-1a", "NVIDIA H200, GPU-2b"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert environment.first_gpus(1) == ["GPU-1a", "GPU-2b"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert environment.first_gpus(1) == ["GPU-1a"]
