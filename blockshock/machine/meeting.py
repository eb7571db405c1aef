"""Ranks meet before they gather a state, so that a call that only some of them make pairs with no other collective.

A collective carries no name: where rank 0 alone asks for a layer's ``state_dict()``, its sum would join whatever the
other ranks sum next, and all would go on with wrong numbers. So the ranks first say in the group's key-value store what
they are about to do. That costs milliseconds, and no forward, backward or step does it.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from datetime import timedelta
from itertools import count
from weakref import WeakKeyDictionary

import torch.distributed as dist

from blockshock.errors import RanksApart
from blockshock.machine import torch_internals
from blockshock.machine.collectives import Group, global_ranks

WARN_SECONDS = 30.0
WAIT_SECONDS = 600.0
"""How long a rank waits for the others: one may be writing a large file."""


_made: Counter[tuple[int, ...]] = Counter()


class Meetings:
    """Those of one group of ranks.

    Attributes:
        numbers: for the layers on these ranks, in the order in which they are built, which is the same on all of them.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._ranks, self._rank = global_ranks(group), group.rank()
        # What an earlier group of these ranks left in a store that outlived it is not for this one.
        prefix = f"blockshock/{_made[self._ranks]}"
        _made[self._ranks] += 1
        self._store = dist.PrefixStore(prefix, torch_internals.store_of(group))  # type: ignore[attr-defined]
        self._held = 0
        self.numbers = count()

    def hold(self, call: str) -> None:
        """Return when all ranks are in this call.

        Raises:
            RanksApart: they are in different ones, or one does not come.
        """
        here, go, calls = f"{self._held}/here", f"{self._held}/go", self._keys(self._held)
        self._store.set(calls[self._rank], call)
        if self._store.add(here, 1) == len(calls):
            self._forget(self._held - 1)
            self._store.set(go, "")
        elif not self._came(go) and self._store.add(here, -1) < len(calls) - 1:
            missing = [rank for rank, key in zip(self._ranks, calls, strict=True) if not self._store.check([key])]
            self._store.delete_key(calls[self._rank])
            raise RanksApart(
                f"rank {self._ranks[self._rank]} waited {WAIT_SECONDS:g} s at {call} for rank "
                f"{', '.join(map(str, missing)) or '(which gave up)'}: ranks {list(self._ranks)} make it together; "
                "to save on one rank, let all make the state and one write it"
            )
        found = [self._store.get(key).decode() for key in calls]
        self._held += 1
        if len(set(found)) > 1:
            where = "; ".join(f"rank {rank} in {one}" for rank, one in zip(self._ranks, found, strict=True))
            raise RanksApart(
                f"the ranks are in different calls: {where}. They must make the same ones, in the same order"
            )

    def _keys(self, number: int) -> list[str]:
        return [f"{number}/{rank}" for rank in range(len(self._ranks))]

    def _came(self, key: str) -> bool:
        start = time.monotonic()
        for seconds in (min(WARN_SECONDS, WAIT_SECONDS), WAIT_SECONDS):
            left = seconds - (time.monotonic() - start)
            try:
                self._store.wait([key], timedelta(seconds=max(left, 0.001)))
                return True
            except RuntimeError:  # of several types, one for each kind of store
                if time.monotonic() - start < seconds / 2:
                    raise  # the store itself is gone
            if seconds < WAIT_SECONDS:
                warnings.warn(f"waiting for the other ranks of {list(self._ranks)} since {seconds:g} s", stacklevel=4)
        return False

    def _forget(self, number: int) -> None:
        """A meeting that all have left, since they are in the next one."""
        for key in (f"{number}/here", f"{number}/go", *self._keys(number)):
            self._store.delete_key(key)


_meetings: WeakKeyDictionary[dist.ProcessGroup, Meetings] = WeakKeyDictionary()


def _of(group: Group) -> Meetings:
    if group not in _meetings:
        _meetings[group] = Meetings(group)
    return _meetings[group]


def meet(group: Group, call: str) -> None:
    """Return when all ranks of the group are in this call; at once where there is one rank.

    Raises:
        RanksApart: they are in different ones, or one does not come.
    """
    if group.size() > 1:
        _of(group).hold(call)


def next_name(group: Group, N: int, K: int) -> str:
    """Of a layer that is being built, the same on all ranks of the group."""
    number = "" if group.size() == 1 else f" {next(_of(group).numbers)}"
    return f"layer{number} ({N}, {K})"
