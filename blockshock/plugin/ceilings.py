"""Measures the machine's ceilings one by one: what cannot be measured is missing, and costs no benchmark its times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from blockshock.measure import Ceilings
from blockshock.phases import ceilings as phase
from blockshock.ranks import RankLost, Ranks

Found = TypeVar("Found")


class Measuring:
    """Measures ceilings on a group of ranks.

    Attributes:
        missing: what could not be measured, with the reason; in the words of the session's summary.
    """

    def __init__(self, ranks: Ranks, mode: str, flush: bool) -> None:
        self._ranks, self._how = ranks, (mode, flush)
        self.missing: dict[str, str] = {}

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings:
        """All of them, products in these dtypes.

        Raises:
            RankLost: a rank is gone for good. Whatever else happens to a measurement costs no more than that ceiling.
        """
        launch = self._measure("launch", phase.launch_s)
        rate, cache = self._measure("memory", phase.memory_and_cache) or (None, 0)
        several = self._ranks.size > 1 and launch is not None
        dense = {name: self._measure(f"dense {name}", phase.dense_flops_per_s, name) for name in dtypes}
        sparse = {name: self._measure(f"2:4 {name}", phase.sparse_flops_per_s, name) for name in dtypes}
        return Ceilings(
            memory_bytes_per_s=rate,
            cache_bytes=cache,
            dense_flops_per_s={name: rate for name, rate in dense.items() if rate is not None},
            sparse_flops_per_s={name: rate for name, rate in sparse.items() if rate is not None},
            all_reduce=self._measure("all-reduce", phase.sum_line, launch) if several else None,
            all_gather=self._measure("all-gather", phase.gather_line, launch) if several else None,
            launch_s=launch,
        )

    def _measure(self, name: str, function: Callable[..., Found], *more: Any) -> Found | None:
        try:
            found, *_ = self._ranks.run(function, *self._how, *more)
        except RankLost:
            raise
        except Exception as error:  # whatever it is, times can be taken without this ceiling
            why = str(error).strip().partition("\n")[0]
            self.missing[name] = f"{type(error).__name__}: {why}" if why else type(error).__name__
            return None
        return found
