"""What a group of ranks can do, whoever started its processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from blockshock.ranks.constants import DEVICES, START_SECONDS

P = ParamSpec("P")
T = TypeVar("T")


class Ranks(ABC):
    """A group of ranks; make one with `spawn` or `adopt`, and close it or use it in a ``with`` statement.

    Attributes:
        size: how many ranks.
        device: ``cpu`` or ``cuda``.
        starts: how many times a group was started.
    """

    def __init__(self, size: int, device: str, timeout: float) -> None:
        if device not in DEVICES:
            raise ValueError(f"unknown device {device!r}: choose from {', '.join(DEVICES)}")
        if size < 1:
            raise ValueError(f"a group needs at least 1 rank, not {size}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")
        self.size, self.device, self._timeout = size, device, timeout
        self._start_timeout = max(timeout, START_SECONDS)
        self.starts = 0

    @abstractmethod
    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Run a module-level function with the same arguments on every rank; return its results in rank order.

        Function, arguments and results travel as plain pickles. If the last call failed, start a new group first.

        Raises:
            Exception: what the first failing rank raised (its cause, a RankError, holds the rank's number and
                traceback; its notes hold the stacks of the ranks that were waiting meanwhile).
            RankError: that exception cannot be rebuilt from a pickle or would end the caller (SystemExit); a result
                cannot be pickled or is larger than 64 MiB; or a rank died.
            RankTimeout: a rank does not answer in time.
            RankLost: another machine, or its rank, is gone.
            TypeError: the function or an argument cannot be pickled; nothing was sent.
            RuntimeError: after `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """End the group; closing again does nothing."""

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """Process id of each rank on this machine that this process can speak for; empty while no group is up."""

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
