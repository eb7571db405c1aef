"""Measures the machine's ceilings one by one: what cannot be measured is missing, and costs no benchmark its times.

What was measured within a day, on the same machine with the same versions and options, is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, TypeVar

from blockshock.machine import environment
from blockshock.measure import Ceilings, Line
from blockshock.phases import ceilings as phase
from blockshock.plugin.progress import Stage, silent
from blockshock.ranks import RankLost, Ranks

Found = TypeVar("Found")


class Measuring:
    """Measures ceilings on a group of ranks.

    Attributes:
        missing: what could not be measured, with the reason; in the words of the session's summary.
    """

    def __init__(self, ranks: Ranks, mode: str, flush: bool, stage: Stage = silent) -> None:
        self._ranks, self._how, self._stage = ranks, (mode, flush), stage
        self._known: dict[str, Any] = {}
        self.missing: dict[str, str] = {}

    def ceilings(self, dtypes: tuple[str, ...], formats: tuple[str, ...] = ()) -> Ceilings:
        """All of them, products in these dtypes and formats.

        Raises:
            RankLost: a rank is gone for good. Whatever else happens to a measurement costs no more than that ceiling.
        """
        key = json.dumps([environment.describe(), self._ranks.device, self._ranks.size, *self._how])
        # Rank 0's machine is asked: ranks of torchrun each have a cache of their own, and must measure together.
        known, *_ = self._ranks.run(phase.recall, key)
        self._known = dict(known)
        launch = self._measure("launch", phase.launch_s)
        rate, cache = self._measure("memory", phase.memory_and_cache) or (None, 0)
        several = self._ranks.size > 1 and launch is not None
        dense = {name: self._measure(f"dense {name}", phase.dense_flops_per_s, name) for name in dtypes}
        sparse = {name: self._measure(f"2:4 {name}", phase.sparse_flops_per_s, name) for name in dtypes}
        dense |= {name: self._measure(f"dense {name}", phase.dense_flops_in, name) for name in formats}
        sparse |= {name: self._measure(f"2:4 {name}", phase.sparse_flops_in, name) for name in formats}
        lines = {
            name: _line(self._measure(name, measure, launch)) if several else None
            for name, measure in (("all-reduce", phase.sum_line), ("all-gather", phase.gather_line))
        }
        if self._known != known:
            self._ranks.run(phase.keep, key, self._known)
        return Ceilings(
            memory_bytes_per_s=rate,
            cache_bytes=cache,
            dense_flops_per_s={name: rate for name, rate in dense.items() if rate is not None},
            sparse_flops_per_s={name: rate for name, rate in sparse.items() if rate is not None},
            all_reduce=lines["all-reduce"],
            all_gather=lines["all-gather"],
            launch_s=launch,
        )

    def _measure(self, name: str, function: Callable[..., Found], *more: Any) -> Found | None:
        if name in self._known:
            known: Found = self._known[name]
            return known
        try:
            with self._stage(f"measuring the machine's ceilings: {name}"):
                found, *_ = self._ranks.run(function, *self._how, *more)
        except RankLost:
            raise
        except Exception as error:  # whatever it is, times can be taken without this ceiling
            why = str(error).strip().partition("\n")[0]
            self.missing[name] = f"{type(error).__name__}: {why}" if why else type(error).__name__
            return None
        self._known[name] = list(astuple(found)) if isinstance(found, Line) else found
        return found


def _line(found: Any) -> Line | None:
    """Of a line that was measured, or of its numbers as they were kept."""
    return found if found is None or isinstance(found, Line) else Line(*found)
