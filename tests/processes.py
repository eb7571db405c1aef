"""Which processes live, as /proc tells: for tests that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, or none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def lives(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return bool(fields := stat(pid)) and fields[0] not in "ZX"


def session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if lives(pid) and stat(pid)[3:4] == [str(leader)]]


def descendants(ancestor: int) -> list[int]:
    """Return the living processes that a process started, and those that they did."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {pid: int(fields[1]) for pid in pids if (fields := stat(pid)) and fields[0] not in "ZX"}
    found = {ancestor}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return sorted(found - {ancestor})


@contextmanager
def ended(leader: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill what a process, the leader of a session, has left at the end, however a test ends."""
    with leader:
        try:
            yield leader
        finally:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)


END_SECONDS = 30.0
"""For processes that are to end by themselves. They take a fraction of one, and on a busy machine some."""


def left_after(pids: list[int], seconds: float = END_SECONDS) -> list[int]:
    """Return those that still live after so many seconds; at once when none does."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def wait_until_gone(pids: list[int], seconds: float = END_SECONDS) -> None:
    """Wait for their end, for so many seconds at most."""
    left = left_after(pids, seconds)
    assert not left, f"still alive: {left}"
