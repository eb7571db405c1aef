"""Makes groups of ranks. Either kind is imported when one is made: they import torch, and a rank, which imports this
package, must know when to end before that."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockshock.ranks.group import Ranks

if TYPE_CHECKING:
    from blockshock.ranks.torchrun import Job


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
    from blockshock.ranks.spawned import SpawnedRanks  # noqa: PLC0415 - see above

    return SpawnedRanks(size, device, timeout, preload)


def adopt(job: Job, device: str = "cpu", timeout: float = 300.0) -> Ranks:
    """The ranks that torchrun started, this process being one of them; all of them call this together.

    `run` then runs the function in the calling process, and returns once every rank has done so. Ranks of one
    machine talk over loopback only, those of several over the interface that leads to MASTER_ADDR, unless
    GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME is set.

    Raises:
        ValueError: an unknown device, a timeout that is not positive, or fewer GPUs than ranks on this machine.
        RuntimeError: the ranks do not find each other.
    """
    from blockshock.ranks.adopted import AdoptedRanks  # noqa: PLC0415 - see above

    return AdoptedRanks(job, device, timeout)
