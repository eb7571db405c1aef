"""The groups of ranks of a session: the one that it measures, and a rank by itself for what runs on one device."""

from __future__ import annotations

from contextlib import ExitStack

from blockshock.machine import memory
from blockshock.methods import Span
from blockshock.phases import Case
from blockshock.plugin.progress import Stage, silent
from blockshock.plugin.settings import Settings
from blockshock.ranks import Ranks, adopt, spawn
from blockshock.ranks.torchrun import Job
from blockshock.registry import extensions


class Groups(ExitStack):
    """Each is started when it is first asked for, and started anew after a failure.

    Under torchrun there is the one that was given: what runs on one device, each rank computes by itself.
    """

    def __init__(self, settings: Settings, job: Job | None = None, stage: Stage = silent) -> None:
        super().__init__()
        self._settings, self._job, self._stage = settings, job, stage
        self._started: dict[int, Ranks] = {}
        self._last: Ranks | None = None

    def size(self, *cases: Case) -> int:
        """How many ranks these run on together: one, if each of them runs on one device."""
        alone = self._job is None and all(case.span == Span.ONE for case in cases)
        return 1 if alone else self._settings.ranks

    def of(self, *cases: Case) -> Ranks:
        """The ranks that these run on together."""
        return self._get(self.size(*cases))

    @property
    def whole(self) -> Ranks:
        """All ranks of the session."""
        return self._get(self._settings.ranks)

    def _get(self, size: int) -> Ranks:
        if size not in self._started:
            with self._stage(f"starting {size} {self._settings.device.upper()} rank{'s' if size > 1 else ''}"):
                self._started[size] = self.enter_context(self._start(size))
        found = self._started[size]
        if self._last not in (None, found) and found.device == "cuda":
            self._last.run(memory.release)  # both have the first device
        self._last = found
        return found

    def _start(self, size: int) -> Ranks:
        device, timeout = self._settings.device, self._settings.rank_timeout
        if self._job is not None:
            return adopt(self._job, device, timeout)
        return spawn(size, device, timeout, preload=extensions())
