"""Ranks as processes of their own, on one Linux machine, that live and die with the process that started them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch

from blockshock.ranks import answers, member
from blockshock.ranks.constants import GRACE_SECONDS
from blockshock.ranks.errors import RankError, RankTimeout
from blockshock.ranks.group import P, Ranks, T
from blockshock.ranks.member import STOP, TICK_SECONDS

STOP_SECONDS = 3.0
LOOK_SECONDS, STACK_SECONDS = 0.1, 10.0  # from one look at a file of stacks to the next, and at most


@dataclass(frozen=True)
class _Member:
    """The parent's hold on one rank."""

    process: SpawnProcess
    pipe: Connection[Any, Any]
    stacks: Path  # the file that faulthandler writes to


class SpawnedRanks(Ranks):
    """See `spawn`."""

    def __init__(
        self, size: int, device: str, timeout: float, preload: Iterable[tuple[str, str | os.PathLike[str]]]
    ) -> None:
        super().__init__(size, device, timeout)
        if device == "cuda" and size > (gpus := torch.cuda.device_count()):
            raise ValueError(f"{size} rank(s) need a GPU each, but there are {gpus} CUDA GPUs")
        self._preload = tuple((name, os.path.abspath(path)) for name, path in preload)
        self._members: list[_Member] = []
        self._lock = threading.RLock()
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        # Unlike weakref.finalize, this also runs before multiprocessing joins the ranks when the parent exits, even
        # where the parent is itself a multiprocessing child, and never in a process forked from the parent.
        self._finalizer = Finalize(self, _close, (self._members, self._folder), exitpriority=0)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        message = answers.pickle_call(function, args, kwargs)
        with self._lock:
            if not self._finalizer.still_active():
                raise RuntimeError("these ranks are closed")
            if not self._members:
                self._start()
            try:
                for rank in self._members:
                    with suppress(OSError):  # from a dead rank, which _collect reports
                        rank.pipe.send_bytes(message)
                return self._collect(self._timeout)
            except BaseException:
                _kill(self._members)
                raise

    def close(self) -> None:
        """End all ranks, politely first, then by force; closing again does nothing."""
        with self._lock:
            self._finalizer()

    @property
    def pids(self) -> list[int]:
        return [pid for rank in self._members if (pid := rank.process.pid) is not None]

    def _start(self) -> None:
        """Start the processes and wait until each has joined the process group; on failure leave none running."""
        self.starts += 1
        # A rank inherits the blocked signal, so Ctrl-C leaves it alone even before it can ignore the signal itself.
        # The tracker, which multiprocessing starts before its first process, would unblock it: it has to come first.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                for rank in range(self.size):
                    self._members.append(self._start_rank(rank))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._collect(self._start_timeout)
        except BaseException:
            _kill(self._members)
            raise

    def _start_rank(self, rank: int) -> _Member:
        context = multiprocessing.get_context("spawn")
        pipe, rank_pipe = context.Pipe()
        stacks = self._folder / f"stacks-{self.starts}-{rank}"
        store = f"file://{self._folder}/store-{self.starts}"
        limit = timedelta(seconds=self._start_timeout)
        join = functools.partial(member.join_spawned, rank, self.size, self.device, store, limit, self._preload)
        # PR_SET_PDEATHSIG fires when the *thread* that started the process ends: only the main one lasts long enough.
        tied = threading.get_native_id() == os.getpid()
        process = context.Process(target=member.main, args=(rank, join, rank_pipe, stacks, tied), name=f"rank {rank}")
        process.start()
        rank_pipe.close()  # only the rank may hold its end, or the parent would not see it close
        return _Member(process, pipe, stacks)

    def _collect(self, seconds: float) -> list[Any]:
        """Wait for every rank's answer; return the results, or raise the first error, or RankTimeout."""
        outcomes: dict[int, tuple[str, Any]] = {}
        culprit: int | None = None
        waiting = set(range(self.size))
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            # A process forked from a rank can keep the rank's end of the pipe open, hence a look at every tick.
            wait([self._members[rank].pipe for rank in waiting], min(left, TICK_SECONDS))
            news = {rank: outcome for rank in sorted(waiting) if (outcome := self._look(rank)) is not None}
            waiting -= news.keys()
            outcomes |= news
            # A death is what makes the collectives of the others raise.
            failed = sorted((kind, rank) for rank, (kind, _) in news.items() if kind != "returned")
            if culprit is None and failed:
                culprit = failed[0][1]
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if culprit is not None:
            kind, failure = outcomes[culprit]
            stacks = self._stacks(waiting)
            if kind == "died":
                others = {rank: value for rank, (how, value) in outcomes.items() if how == "raised"}
                stacks |= {rank: str(error.__cause__ or error) for rank, error in others.items()}
            raise answers.note_stacks(failure, stacks)
        if waiting:
            late = ", ".join(f"rank {rank}" for rank in sorted(waiting))
            stacks = self._stacks(range(self.size))
            raise RankTimeout(f"no answer within {seconds:g} s from {late}\n\n{answers.show_stacks(stacks)}")
        return [outcomes[rank][1] for rank in range(self.size)]

    def _look(self, rank: int) -> tuple[str, Any] | None:
        """Return ("returned", result), ("raised", error) or ("died", error), or None while the rank is busy."""
        member = self._members[rank]
        code = member.process.exitcode  # before the pipe, so that an answer given just before the end is not missed
        try:
            if member.pipe.poll():
                return answers.decode(rank, member.pipe.recv_bytes())
            if code is None:
                return None
        except (EOFError, OSError):
            member.process.join(GRACE_SECONDS)  # the pipe closes a little before the process is gone
            code = member.process.exitcode
        end = f"ended with exit code {code}"
        if code is not None and code < 0:
            names = {known.value: known.name for known in signal.Signals}
            end = f"was killed by {names.get(-code, f'signal {-code}')}"
        return "died", RankError(f"rank {rank} {end}\n\n{_read(member.stacks)}".strip())

    def _stacks(self, ranks: Iterable[int]) -> dict[int, str]:
        """Have these ranks write their Python stacks, where they live; return them all."""
        asked = {rank: self._members[rank] for rank in ranks}
        for rank in asked.values():
            if rank.process.exitcode is None and rank.process.pid is not None:
                os.kill(rank.process.pid, signal.SIGUSR1)
        _wait_for_stacks(asked.values())
        return {
            number: _read(rank.stacks) or "(none: it is stopped, or has not started yet)"
            for number, rank in asked.items()
        }


def _wait_for_stacks(asked: Iterable[_Member]) -> None:
    """Wait until those that run have written theirs: a rank of a busy machine does so late."""
    before: list[int] = []
    deadline = time.monotonic() + STACK_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        sizes = [rank.stacks.stat().st_size if rank.stacks.exists() else 0 for rank in asked if _runs(rank.process)]
        if 0 not in sizes and sizes == before:
            return
        before = sizes


def _runs(process: SpawnProcess) -> bool:
    """Whether it is neither gone nor stopped."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _close(members: list[_Member], folder: Path) -> None:
    """Ask the ranks to leave the process group and end; kill those that do not within seconds; remove the folder."""
    for rank in members:
        with suppress(OSError):
            rank.pipe.send_bytes(STOP)
    deadline = time.monotonic() + STOP_SECONDS
    for rank in members:
        rank.process.join(max(0.0, deadline - time.monotonic()))
    _kill(members)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(members: list[_Member]) -> None:
    for rank in members:
        rank.process.kill()
    for rank in members:
        rank.process.join(STOP_SECONDS)
        rank.pipe.close()
    members.clear()


def _read(path: Path) -> str:
    """Return the text that faulthandler has written to a file, or an empty string."""
    return path.read_text(errors="replace").strip() if path.exists() else ""
