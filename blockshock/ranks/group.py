"""What a group of ranks can do, whoever started its processes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from blockshock.ranks.torchrun import Job

P = ParamSpec("P")
T = TypeVar("T")

DEVICES = ("cpu", "cuda")
START_SECONDS = 120.0  # the least that a start may take: it imports torch, however short the calls are to be
GRACE_SECONDS = 1.0  # for the other ranks to finish, once one has failed


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

    @staticmethod
    def spawn(
        size: int,
        device: str = "cpu",
        timeout: float = 300.0,
        preload: Iterable[tuple[str, str | os.PathLike[str]]] = (),
    ) -> Ranks:
        """Start `size` processes on this machine, and return once all of them are up.

        Each `run` may take `timeout` seconds; a start may take as long, and at least 120 seconds. `preload` names
        modules, as (module name, file path), that a rank loads from their files before it runs anything. Ranks talk
        over loopback only, unless GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME is set.

        Raises:
            ValueError: an unknown device, a size or timeout that is not positive, or more ranks than GPUs.
            RankError, RankTimeout: a rank does not come up. Also whatever a preloaded module raises.
        """
        from blockshock.ranks.spawned import SpawnedRanks  # noqa: PLC0415 - it is a subclass

        return SpawnedRanks(size, device, timeout, preload)

    @staticmethod
    def adopt(job: Job, device: str = "cpu", timeout: float = 300.0) -> Ranks:
        """The ranks that torchrun started, this process being one of them; all of them call this together.

        `run` then runs the function in the calling process, and returns once every rank has done so. Ranks of one
        machine talk over loopback only, those of several over the interface that leads to MASTER_ADDR, unless
        GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME is set.

        Raises:
            ValueError: an unknown device, a timeout that is not positive, or fewer GPUs than ranks on this machine.
            RuntimeError: the ranks do not find each other.
        """
        from blockshock.ranks.adopted import AdoptedRanks  # noqa: PLC0415 - it is a subclass

        return AdoptedRanks(job, device, timeout)

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
