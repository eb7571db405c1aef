"""The job that torchrun started, of which this process is a rank."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from blockshock.ranks.constants import START_SECONDS
from blockshock.ranks.exchange import Exchange
from blockshock.ranks.place import Place


class Job:
    """The ranks of one torchrun job, and the store that connects them.

    Args:
        lost_after: seconds without a sign of life after which a rank is lost.
        start_after: the same of one that has given none yet.

    Raises:
        RuntimeError: the store does not answer.
        RankLost: a rank does not come.
    """

    def __init__(self, place: Place, lost_after: float, start_after: float = START_SECONDS) -> None:
        self.place = place
        self._stderr = os.dup(2)  # what captures output redirects the original
        attempt = f"ranks/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
        self._store = PrefixStore(attempt, store)
        # A connection of its own: what waits in the other must not keep it from showing that this rank lives.
        own = self._store.clone()  # type: ignore[attr-defined]
        self.exchange = Exchange(own, place.rank, place.size, lost_after, start_after)

    def store(self, name: str) -> Any:
        """A part of the job's store that nobody else uses."""
        return PrefixStore(name, self._store)

    def say(self, text: str) -> None:
        """Write to what was the standard error when the job was joined."""
        os.write(self._stderr, f"{text}\n".encode())

    @property
    def interface(self) -> str | None:
        """The network interface to talk over; None to leave the choice to torch."""
        return "lo" if self.place.nodes == 1 else _interface_to(os.environ["MASTER_ADDR"])


def _interface_to(host: str) -> str | None:
    """The interface with the IPv4 address that packets to a host leave from; None if that is loopback or unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            address = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    found = fcntl.ioctl(probe, 0x8915, request)[20:24]  # SIOCGIFADDR
                except OSError:
                    continue  # it has no IPv4 address
                if socket.inet_ntoa(found) == address and not address.startswith("127."):
                    return name
    except OSError:
        pass
    return None
