"""Ranks that torchrun started: every process runs what it is asked to itself, and hears of the others'."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from blockshock.ranks import answers, join
from blockshock.ranks.constants import GRACE_SECONDS
from blockshock.ranks.errors import RankError, RankLost, RankTimeout
from blockshock.ranks.group import P, Ranks, T
from blockshock.ranks.torchrun import Job

FREE_SECONDS = 10.0  # for a rank to come back from what it was interrupted in
INTERRUPT = signal.SIGUSR2


class AdoptedRanks(Ranks):
    """See `adopt`."""

    def __init__(self, job: Job, device: str, timeout: float) -> None:
        super().__init__(job.place.size, device, timeout)
        self._job, self._exchange, self._rank = job, job.exchange, job.place.rank
        if device == "cuda" and job.place.local_size > (gpus := torch.cuda.device_count()):
            raise ValueError(f"{job.place.local_size} rank(s) of this machine need a GPU each, but it has {gpus}")
        if job.interface:
            join.talk_over(job.interface)
        join.bind(device, job.place.local_rank, job.place.local_size)
        self._closed = False
        self._start()

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        message = answers.pickle_call(function, args, kwargs)
        if self._closed:
            raise RuntimeError("these ranks are closed")
        if not dist.is_initialized():
            self._start()
        guard = _Guard(self._job, self._timeout)
        answered = guard.watch(functools.partial(answers.answer, self._rank, functools.partial(answers.call, message)))
        try:
            if not guard.stack:
                self._exchange.post(answered)
            return self._results(self._exchange.take())
        except BaseException:
            self._leave()  # which also frees those who wait for this rank in a collective of gloo
            raise

    def close(self) -> None:
        self._closed = True
        self._leave()

    @property
    def pids(self) -> list[int]:
        return [os.getpid()] if dist.is_initialized() else []

    def _start(self) -> None:
        self.starts += 1
        limit = timedelta(seconds=self._start_timeout + FREE_SECONDS)  # ours comes first
        store = self._job.store(f"group-{self.starts}")
        join.join(self._rank, self.size, self.device, limit, store=store)

    def _leave(self) -> None:
        with suppress(Exception):  # from a group that was aborted: it is gone, which is what is wanted
            join.leave()

    def _results(self, posted: list[bytes]) -> list[Any]:
        outcomes = [answers.decode(rank, answered) for rank, answered in enumerate(posted)]
        stacks = {rank: value for rank, (kind, value) in enumerate(outcomes) if kind == "interrupted"}
        for kind, value in outcomes:
            if kind == "raised":
                raise answers.note_stacks(value, stacks)
        for rank, (kind, _) in enumerate(outcomes):
            if kind not in ("returned", "interrupted"):
                raise RankError(f"rank {rank} is not in this call: it has left the test, its own outcome tells why")
        if stacks:
            late = ", ".join(f"rank {rank}" for rank in stacks)
            raise RankTimeout(f"no answer within {self._timeout:g} s from {late}\n\n{answers.show_stacks(stacks)}")
        return [value for _, value in outcomes]


class _Interrupted(BaseException):
    """Ends what a rank is in, because another rank has failed or the time is up."""


class _Guard:
    """Watches the others while this rank is in a call, and gets it out when one of them fails, or the time is up.

    Attributes:
        stack: where this rank was when it was interrupted, or empty.
    """

    def __init__(self, job: Job, seconds: float) -> None:
        self.stack = ""
        self._job, self._exchange, self._seconds = job, job.exchange, seconds
        self._inside = True
        self._caller = threading.current_thread()
        self._done = threading.Event()

    def watch(self, work: Callable[[], bytes]) -> bytes:
        """Do the work in this thread, watched by another."""
        before = signal.signal(INTERRUPT, self._interrupt)
        thread = threading.Thread(target=self._guard, daemon=True)
        thread.start()
        answered = b""
        try:
            answered = work()
            self._inside = False
        except _Interrupted:  # between the two lines above
            pass
        self._done.set()
        self._exchange.wake()
        thread.join()
        signal.signal(INTERRUPT, before)
        return answered

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._inside:
            raise _Interrupted

    def _where(self) -> str:
        """Where the caller is, from the called function on."""
        frames = traceback.extract_stack(sys._current_frames()[self._caller.ident or 0])
        inside = list(itertools.takewhile(lambda frame: frame.filename != answers.__file__, reversed(frames)))
        return "".join(traceback.format_list(inside[::-1])).strip() or "about to answer"

    def _over(self, others: list[bytes]) -> bool:
        return self._done.is_set() or not all(map(answers.returned, others))

    def _guard(self) -> None:
        with suppress(RankLost):  # the caller meets it when it is back, if it comes back
            self._exchange.watch(self._over, self._seconds)
        if self._done.is_set():
            return
        self.stack = self._where()
        self._exchange.post(answers.encode("interrupted", self.stack))
        if self._done.wait(2 * GRACE_SECONDS):
            return
        with suppress(Exception):  # gloo cannot; NCCL ends what it has launched
            dist.group.WORLD.abort()  # type: ignore[union-attr]
        if self._done.wait(GRACE_SECONDS):
            return
        signal.pthread_kill(self._caller.ident or 0, INTERRUPT)
        # Where a rank is lost, nothing that this one waits for comes any more.
        if not self._done.wait(GRACE_SECONDS if self._exchange.lost() else FREE_SECONDS):
            why = self._exchange.lost() or f"the call took longer than {self._seconds:g} s, or failed on another rank"
            rank = self._exchange.rank
            self._job.say(f"{why}\nrank {rank} ends, for it cannot be freed from where it waits:\n{self.stack}")
            os._exit(1)
