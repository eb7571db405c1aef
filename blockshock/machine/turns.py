"""Turns on GPUs: of a user's processes on one machine, those that need the same ones have them one after the other.

A GPU has a lock, on a file that stays. The kernel takes it back when its owner ends, however that ends: none is stale.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE_SECONDS = 5.0
"""After which a process that waits says for whom."""
HELD = "BLOCKSHOCK_GPUS_HELD"
"""In the environment: the GPUs that a process holds, for those that it starts.

They use them within its turn, and wait for one another only. Were they to wait for it, that would be for ever.
"""
SHARED = "BLOCKSHOCK_GPUS_SHARED"
"""In the environment: the GPUs that those whom a process starts need not wait for, on one another either."""


def folder() -> Path:
    """Where this user's locks are."""
    return Path(tempfile.gettempdir()) / f"blockshock-gpus-{os.getuid()}"


@contextmanager
def turn(gpus: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Hold GPUs.

    Args:
        gpus: names that no other on this machine has, such as their UUIDs.
        say: is told once of each that is waited for longer than a few seconds.

    Raises:
        OSError: the locks cannot be made.
    """
    held = os.environ.get(HELD, "").split(",")
    with ExitStack() as stack:
        # In one order, or of two who need the same GPUs each could hold one and wait for the other.
        for gpu in sorted(set(gpus).difference(os.environ.get(SHARED, "").split(","))):
            stack.enter_context(_held(gpu, held.count(gpu), say))
        stack.enter_context(_told_to_children(HELD, gpus))
        yield


@contextmanager
def shared(gpus: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Hold GPUs as `turn` does, for processes that use them side by side: what they do is not timed."""
    with turn(gpus, say), _told_to_children(SHARED, gpus):
        yield


@contextmanager
def _told_to_children(name: str, gpus: Sequence[str]) -> Iterator[None]:
    before = os.environ.get(name, "")
    os.environ[name] = ",".join([before, *gpus])
    try:
        yield
    finally:
        os.environ[name] = before


@contextmanager
def _held(gpu: str, depth: int, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a GPU, within the turns of so many processes that started this one."""
    folder().mkdir(mode=0o700, exist_ok=True)
    path = folder() / f"{gpu}{'+' * depth}.lock"
    owner = path.with_suffix(".pid")  # a file of its own: who tries for a lock may truncate the lock's
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        say(f"waiting for {gpu}, which {_told(owner)} holds")
        lock.acquire(timeout=-1)
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _told(owner: Path) -> str:
    try:
        return f"process {owner.read_text()}"
    except OSError:
        return "another process"
