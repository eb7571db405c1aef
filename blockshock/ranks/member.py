"""A spawned rank's own process. Importing torch takes seconds: by then a rank must know when to end, so not here."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from blockshock.ranks import answers

TICK_SECONDS = 0.5
STOP = b""
JOINING = "blockshock.ranks.join"  # which imports torch


def main(rank: int, join: Callable[[], None], pipe: Connection[Any, Any], stacks: Path, tied: bool) -> None:
    """Be a rank: join the process group, then answer calls until told to stop or until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # all that importing torch makes stays: to look for garbage in it takes a fifth of the import
    if tied:  # needs no Python thread, so it works even where native code hangs while it holds the interpreter lock
        end_with_parent_thread(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    descriptor = os.open(stacks, os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.enable(descriptor)
    faulthandler.register(signal.SIGUSR1, descriptor)
    try:
        joined = answers.answer(rank, join)
        gc.freeze()
        gc.enable()
        pipe.send_bytes(joined)
        while message := pipe.recv_bytes():
            pipe.send_bytes(answers.answer(rank, functools.partial(answers.call, message)))
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)
    if (joining := sys.modules.get(JOINING)) is not None:
        joining.leave()
    gc.freeze()  # it ends with all that it holds, which needs no looking through


def join_spawned(
    rank: int, size: int, device: str, store: str, limit: timedelta, preload: tuple[tuple[str, str], ...]
) -> None:
    """Bind to the device, load the preloaded modules and join the process group."""
    joining = importlib.import_module(JOINING)
    joining.talk_over("lo")
    joining.bind(device, rank, size, os.environ.get("OMP_NUM_THREADS", ""))
    for name, path in preload:
        joining.load(name, path)
    joining.join(rank, size, device, limit, init_method=store)


def end_with_parent_thread(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(number))  # 1 is PR_SET_PDEATHSIG


def _end_with_parent() -> None:
    """End this process once the parent is gone, or has dropped its handle on this process."""
    parent = parent_process()
    # The sentinel of `parent` is a pipe that only the parent holds open. A process forked from the parent would hold
    # it too, hence a look at every tick.
    while parent is not None and parent.is_alive() and os.getppid() == parent.pid:
        parent.join(TICK_SECONDS)
    os._exit(1)
