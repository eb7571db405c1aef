"""A saved run is whole or absent: the disk is full, the folder is read-only, the session is killed while it saves."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from inner_pytest import LIGHT_OPTIONS, ROOT, light_suite, python_path, start
from processes import ended, left_after, session
from pytest_benchmark.utils import get_machine_id
from reliability import Record

import blockshock.plugin  # noqa: F401 # loaded before pytester notes what is: torch cannot be loaded twice
from blockshock.__main__ import main
from blockshock.saved.journal import FINISHED, unfinished_below
from blockshock.saved.results import read_run

pytestmark = pytest.mark.reliability

pytest_plugins = ["pytester"]
RUNS = Path("benchmark_results") / get_machine_id()
COUNT = 3
CAP_DAC_OVERRIDE = 1


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner run is not one of the outer one's xdist workers, where this test may be running."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)  # which takes a second, twice a session


class WhileSaving:
    """A pytest plugin that makes something go wrong just while pytest-benchmark saves."""

    def __init__(self, fault: Callable[[], AbstractContextManager[None]]) -> None:
        self._fault, self._stack = fault, ExitStack()

    def pytest_benchmark_update_json(self) -> None:
        self._stack.enter_context(self._fault())

    def pytest_sessionfinish(self) -> None:
        self._stack.close()


@contextmanager
def full_disk(at: int = 4096) -> Iterator[None]:
    """The kernel ends every write at so many bytes of a file, as at the end of a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No file can be made in the folder, not by root either."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        with without_override():
            yield
    finally:
        folder.chmod(mode)


@contextmanager
def without_override() -> Iterator[None]:
    """Without the capability by which permissions do not bind root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    had = sets[0]
    sets[0] = had & ~(1 << CAP_DAC_OVERRIDE)
    libc.capset(header, sets)
    try:
        yield
    finally:
        sets[0] = had
        libc.capset(header, sets)


def run_light(pytester: pytest.Pytester, *arguments: str, plugin: object = None) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*LIGHT_OPTIONS, *arguments, plugins=[plugin] if plugin else [])


def recovered(capsys: pytest.CaptureFixture[str]) -> int:
    """How many benchmarks `recover` brings back."""
    capsys.readouterr()
    assert main(["recover"]) == 0
    return len(read_run(Path(capsys.readouterr().out.removeprefix("Saved: ").strip())).records)


@pytest.mark.parametrize(
    ("fault", "reason", "fault_name"),
    [
        (full_disk, "File too large", "disk full while saving"),
        (lambda: read_only(RUNS), "Permission denied", "results folder read-only"),
    ],
    ids=["full", "read-only"],
)
def test_a_run_that_cannot_be_saved_is_absent_and_in_the_journal(
    fault: Callable[[], AbstractContextManager[None]],
    reason: str,
    fault_name: str,
    pytester: pytest.Pytester,
    capsys: pytest.CaptureFixture[str],
    injected: Record,
) -> None:
    light_suite(pytester.path)
    result = run_light(pytester, "--benchmark-save=whole", plugin=WhileSaving(fault))
    result.assert_outcomes(passed=COUNT)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    folder = unfinished_below()[0][0]
    not_saved = f"not saved: {RUNS}/0001_whole.json ({reason}); the journal has it all"
    result.stdout.fnmatch_lines([f"{not_saved}: python -m blockshock recover {folder}"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert "Saved" not in result.stdout.str() + result.stderr.str()
    assert list(RUNS.iterdir()) == []
    found = recovered(capsys)
    assert found == COUNT
    injected(fault_name, lost=COUNT - found)

    again = run_light(pytester, "--benchmark-save=whole")
    again.stdout.fnmatch_lines([f"Saved: {RUNS}/0002_whole.json"])
    assert again.ret == pytest.ExitCode.OK
    assert len(read_run(RUNS / "0002_whole.json").records) == COUNT
    assert unfinished_below()[0][0] == folder, "saved since, but by another session"


def test_a_folder_that_is_read_only_from_the_start_is_refused_before_anything_is_measured(
    pytester: pytest.Pytester,
) -> None:
    light_suite(pytester.path)
    RUNS.mkdir(parents=True)
    with read_only(RUNS):
        result = run_light(pytester, "--benchmark-autosave")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            ["ERROR: runs cannot be saved: */benchmark_results/* (Permission denied). Choose *"]
        )
        assert run_light(pytester).ret == pytest.ExitCode.OK, "nothing is to be saved"


def test_in_a_folder_that_is_read_only_a_session_that_saves_nothing_ends_with_its_answer(
    pytester: pytest.Pytester,
) -> None:
    light_suite(pytester.path)
    with_cache = [option for option in LIGHT_OPTIONS if option != "no:cacheprovider"]
    with_cache.remove("-p")
    with read_only(pytester.path):
        result = pytester.runpytest_inprocess(*with_cache)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*PytestCacheWarning: could not *", "*= Block-Shock =*"])


def test_without_assertions_nothing_is_tested(tmp_path: Path) -> None:
    program = "import conftest, pytest\ntry: conftest.pytest_configure()\nexcept pytest.UsageError as e: print(e)"
    command = [sys.executable, "-O", "-c", program]
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "drop the assertions that the tests are made of" in done.stdout, done.stderr


def test_a_disk_that_was_full_for_a_while_costs_the_journal_nothing(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    class Meanwhile:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            if not item.name.endswith("[1]"):
                return (yield)
            (metrics,) = Path().glob("benchmark_results/journal/*/metrics.jsonl")
            end = metrics.stat().st_size + 64
            with full_disk(end):
                result = yield
            assert metrics.stat().st_size == end, "cut off"
            return result

    light_suite(pytester.path)
    run_light(pytester, "--benchmark-save=whole", plugin=Meanwhile()).assert_outcomes(passed=COUNT)
    (marker,) = Path().glob(f"benchmark_results/journal/*/{FINISHED}")
    marker.unlink()
    (marker.parent / "recovered").unlink()  # or the run that is saved would do
    assert recovered(capsys) == COUNT


def test_without_a_journal_the_session_goes_on_and_says_so(pytester: pytest.Pytester) -> None:
    light_suite(pytester.path)
    (pytester.path / "benchmark_results").mkdir()
    (pytester.path / "benchmark_results" / "journal").write_text("in the way")
    result = run_light(pytester)
    assert result.ret == pytest.ExitCode.OK
    lacking = "no journal in benchmark_results/journal/* (Not a directory)"
    result.stdout.fnmatch_lines([f"{lacking}: if this session dies, it is lost"])
    result = run_light(pytester, "--benchmark-save=whole", plugin=WhileSaving(full_disk))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"not saved: {RUNS}/0001_whole.json (File too large); {lacking}"])


SLOW = """
import os, time
from pathlib import Path

fsync = os.fsync

def slow(descriptor):
    if "_whole.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
        Path("saving").touch()
        time.sleep(60)
    fsync(descriptor)

os.fsync = slow
"""


def test_a_session_that_is_killed_while_it_saves_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], injected: Record
) -> None:
    folder = light_suite(tmp_path, SLOW)
    with ended(start(folder, *LIGHT_OPTIONS, "--benchmark-save=whole", new_session=True)) as inner:
        deadline = time.monotonic() + 240
        while not (folder / "saving").exists() and inner.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        inner.send_signal(signal.SIGKILL)
        output, _ = inner.communicate()
        assert inner.returncode == -signal.SIGKILL, output
        orphans = left_after(session(inner.pid))
    monkeypatch.chdir(folder)
    assert list(RUNS.glob("*.json")) == []
    found = recovered(capsys)
    assert (found, orphans) == (COUNT, [])
    injected("killed while saving", lost=COUNT - found, orphans=len(orphans))


WRITER = """
import itertools, json, sys
from pathlib import Path
from blockshock.saved.journal import write_whole

texts = [json.dumps([number] * 300_000) for number in (1, 22)]
print("ready", flush=True)
for text in itertools.cycle(texts):
    write_whole(Path("run.json"), text)
"""


def test_killed_at_any_moment_a_file_is_whole(tmp_path: Path, soak: bool, injected: Record) -> None:
    times, moments = 30 if soak else 8, random.Random(0)
    for number in range(times):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": python_path(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        with writer.stdout as output:
            output.readline()
            time.sleep(moment := moments.uniform(0, 0.05))
            writer.kill()
            writer.wait()
        if (tmp_path / "run.json").exists():
            found = json.loads((tmp_path / "run.json").read_text())
            assert len(found) == 300_000, f"kill {number}, {moment:.4f} s after the first byte"
    injected("killed while saving", times=times)


def test_a_run_to_compare_with_that_is_not_there_is_said(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        session = start(light_suite(tmp_path), *LIGHT_OPTIONS, *arguments)
        output, _ = session.communicate()
        assert session.returncode == pytest.ExitCode.OK, output
        return output

    missing = told("--benchmark-compare=0099", "--benchmark-save=elsewhere")
    assert "PytestBenchmarkWarning: Can't compare. No benchmark files in" in missing
    assert "match '0099'" in missing
    (saved,) = (tmp_path / RUNS).glob("*.json")
    saved.write_text(saved.read_text().replace('"machine_info": {', '"machine_info": {"elsewhere": 1,'))
    found = told("--benchmark-compare=0001")
    assert "Comparing against benchmarks from:" in found
    assert "PytestBenchmarkWarning" not in found, "that machines differ is meant"
    shutil.copytree(saved.parent, tmp_path.parent / "beside" / saved.parent.name)
    beside = told(f"--benchmark-storage=file://{tmp_path.parent / 'beside'}", "--benchmark-compare=0001")
    assert "Comparing against benchmarks from:" in beside, "where runs lie is no matter"
