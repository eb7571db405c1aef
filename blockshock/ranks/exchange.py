"""What ranks tell each other beside their process group, through a store; and how they notice that one is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from blockshock.ranks.constants import START_SECONDS
from blockshock.ranks.errors import RankLost

BEAT_SECONDS = 1.0
QUICK_SECONDS, SLOW_SECONDS = 0.005, 0.25
"""From one look into the store to the next: while an answer is waited for, and beside other work."""


class Exchange:
    """Takes turns: in each, every rank posts one value and may take everybody's.

    A thread of its own talks to the store, so that a store that does not answer blocks nobody, and shows every second
    that this rank lives.
    """

    def __init__(self, store: Any, rank: int, size: int, lost_after: float, start_after: float = START_SECONDS) -> None:
        self.rank, self.size = rank, size
        self._store, self._lost_after, self._start_after = store, lost_after, start_after
        self._news = threading.Condition()
        self._outbox: list[tuple[str, bytes | None]] = []
        self._inbox: dict[str, bytes] = {}
        self._wanted: frozenset[str] = frozenset()
        self._pause = SLOW_SECONDS
        self._turn = 0
        self._broken, self._closed = "", False
        self._answered = time.monotonic()
        self._heard = {other: (b"", self._answered) for other in range(size) if other != rank}
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()
        self.hosts: list[str] = []
        self.hosts = [host.decode() for host in self.everyone(socket.gethostname().encode())]

    def everyone(self, value: bytes) -> list[bytes]:
        """Post a value in the coming turn, and take it with those of all other ranks, in rank order.

        Raises:
            RankLost: a rank, or the store, is gone.
        """
        self.post(value)
        return self.take()

    def post(self, value: bytes) -> None:
        """Post this rank's value of the coming turn; `take` has to follow."""
        with self._news:
            self._outbox.append((self._name(self._turn + 1, self.rank), value))
            self._news.notify_all()

    def take(self) -> list[bytes]:
        """The values of the turn that this rank has posted in; waits for them.

        Raises:
            RankLost: a rank, or the store, is gone.
        """
        names = [self._name(self._turn + 1, rank) for rank in range(self.size)]
        found = self._look(names, QUICK_SECONDS, lambda found: len(found) == self.size)
        with self._news:
            # Every rank has read the turn before this one, for it has posted in this one.
            self._outbox.append((self._name(self._turn, self.rank), None))
            self._inbox.clear()
        self._turn += 1
        return [found[name] for name in names]

    def watch(self, until: Callable[[list[bytes]], bool], seconds: float) -> None:
        """Look at what others post in the coming turn until that, or until the time is up.

        Raises:
            RankLost: a rank, or the store, is gone.
        """
        names = [self._name(self._turn + 1, rank) for rank in range(self.size) if rank != self.rank]
        self._look(names, SLOW_SECONDS, lambda found: until(list(found.values())), seconds)

    def lost(self) -> str:
        """What is gone, the store or a rank, in a sentence; empty while nothing is."""
        now, limit = time.monotonic(), self._lost_after
        if self._broken:
            return (
                f"the store that connects the ranks is gone: has the first machine's torchrun ended? ({self._broken})"
            )
        if now - self._answered > limit:
            return f"the store that connects the ranks has not answered for {limit:g} s: is the network down?"
        for rank, (beat, heard) in self._heard.items():
            limit = self._lost_after if beat else self._start_after  # machines import torch at different speeds
            if now - heard > limit and not beat:
                return f"rank {rank} has not come within {limit:g} s"
            if now - heard > limit:
                host = f" on {self.hosts[rank]}" if self.hosts else ""
                return f"nothing was heard of rank {rank}{host} for {limit:g} s: its process or its machine is gone"
        return ""

    def wake(self) -> None:
        """Have `watch` ask again whether it is done."""
        with self._news:
            self._news.notify_all()

    def close(self) -> None:
        """Send what was posted, and stop."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._thread.join(self._lost_after)

    def _name(self, turn: int, rank: int) -> str:
        return f"turn-{turn}/{rank}"

    def _look(
        self,
        names: Sequence[str],
        pause: float,
        done: Callable[[dict[str, bytes]], bool],
        seconds: float = float("inf"),
    ) -> dict[str, bytes]:
        deadline = time.monotonic() + seconds
        with self._news:
            self._wanted, self._pause = frozenset(names), pause
            self._news.notify_all()
            try:
                while True:
                    found = {name: self._inbox[name] for name in names if name in self._inbox}
                    left = deadline - time.monotonic()
                    if done(found) or left <= 0:
                        return found
                    if lost := self.lost():
                        raise RankLost(lost)
                    self._news.wait(min(left, BEAT_SECONDS))
            finally:
                self._wanted, self._pause = frozenset(), SLOW_SECONDS

    def _talk(self) -> None:
        beats, due = 0, time.monotonic()
        while not self._closed or self._outbox:
            try:
                self._send_and_fetch()
                if time.monotonic() >= due:
                    beats, due = beats + 1, time.monotonic() + BEAT_SECONDS
                    self._beat(beats)
            except Exception as error:  # whatever this store raises, it is of no use any more
                self._broken = str(error).partition("\n")[0] or type(error).__name__
            with self._news:
                self._news.notify_all()
                if self._broken:
                    return
                if not self._outbox and not self._closed:
                    pause = self._pause if self._wanted else BEAT_SECONDS
                    self._news.wait(min(pause, max(0.0, due - time.monotonic())))

    def _send_and_fetch(self) -> None:
        with self._news:
            outbox, self._outbox = self._outbox, []
            missing = self._wanted - self._inbox.keys()
        for name, value in outbox:
            if value is None:
                self._store.delete_key(name)
            else:
                self._store.set(name, value)
        for name in missing:
            if self._store.check([name]):
                value = self._store.get(name)
                with self._news:
                    self._inbox[name] = value
        self._answered = time.monotonic()

    def _beat(self, count: int) -> None:
        self._store.set(f"beat/{self.rank}", str(count))
        for rank, (last, _) in self._heard.items():
            beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else last
            if beat != last:
                self._heard[rank] = beat, time.monotonic()
