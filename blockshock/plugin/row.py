"""One row of the result table: a case, run on the ranks that it takes, and what is saved of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from blockshock.errors import BlockShockError
from blockshock.measure import Ceilings
from blockshock.methods import Promise, method_of
from blockshock.phases import Case, correctness, obstacle, profile
from blockshock.plugin.clock import clock
from blockshock.plugin.clockwatch import ClockWatch
from blockshock.plugin.groups import Groups
from blockshock.plugin.limits import describe_limits
from blockshock.plugin.phases import Phase
from blockshock.plugin.records import describe_case, describe_kernel, describe_layers, describe_quality
from blockshock.plugin.settings import Settings
from blockshock.plugin.stash import JOURNAL, RECORDS, STARTED, storage
from blockshock.ranks import RankError
from blockshock.saved import is_known


def trace_folder(config: pytest.Config) -> Path:
    """Where ``--profile`` puts the traces of this session."""
    return storage(config) / "profiles" / f"{STARTED:%Y%m%d_%H%M%S}"


class Row:
    """One row of the result table: runs its case on the ranks that it takes, and saves what they measured."""

    def __init__(self, request: pytest.FixtureRequest, settings: Settings, groups: Groups) -> None:
        self._request, self._settings, self._groups = request, settings, groups
        self._watch = ClockWatch()
        self._cases: list[Case] = []

    def measure(self, phase: Phase, case: Case) -> None:
        """Run a case of a phase and save what is found; what is wrong fails the test."""
        protocol, builds = (self._settings.protocol, 2) if phase.timed else ((), 1)
        try:
            per_rank = self.run(
                phase.program, case, *protocol, backward=phase.backward, builds=builds, obstacle=phase.obstacle
            )
        except Exception as error:
            # What it raises where it is checked is as wrong an output as any: its times are not to be believed.
            if not (phase.timed or isinstance(error, RankError | MemoryError | torch.OutOfMemoryError)):
                told, *_ = str(error).split("\n")
                failure = {"status": "wrong", "failure": f"it raised {type(error).__name__}: {told}"}
                self.save(phase.number, case, [], {"kind": phase.kind, **failure})
            raise
        found = phase.find(case, self._settings, per_rank)
        info = {"kind": phase.kind, **found.info}
        if phase.timed and phase.of != "network":
            info |= self.limits(case, per_rank, found.samples, info) | self._profile(phase.number, case)
        if phase.timed and phase.of == "layer":
            info |= self.quality(case) | describe_layers(case, self._settings)
        wrong = [failure for failure in found.failures if failure is not None]
        if found.failures:
            info |= {"status": "wrong", "failure": "; ".join(wrong)} if wrong else {"status": "right"}
        self.save(phase.number, case, found.samples, info)
        assert not wrong, "; ".join(wrong)

    def run(
        self,
        function: Any,
        case: Case,
        *args: object,
        backward: bool = False,
        builds: int = 1,
        obstacle: Callable[..., str | None] = obstacle,
    ) -> list[Any]:
        """One result per rank. Skips the test, with the reason, when the cases cannot run here; fails it, with what it
        says and then a rank's traceback, for what is refused: a pruner's mask that is not 2:4, say.

        Args:
            backward: they are differentiated.
            builds: how many builds are held at once.
            obstacle: what a rank says of a case that it cannot run.
        """
        self._cases = [case, *(other for other in args if isinstance(other, Case))]
        ranks = self._groups.of(*self._cases)
        for one in self._cases:
            for reason in ranks.run(obstacle, one, backward, builds):
                if reason:
                    pytest.skip(reason)
        try:
            return ranks.run(function, case, *args)
        except BlockShockError as error:
            pytest.fail("\n\n".join(filter(None, [str(error), str(error.__cause__ or "")])), pytrace=False)

    def limits(self, case: Case, per_rank: Sequence[Any], samples: list[float], info: dict[str, Any]) -> dict[str, Any]:
        """The time that no implementation can beat, and how much of the measured time that is."""
        ranks = self._groups.of(*self._cases)
        ceilings: Ceilings | None = self._request.getfixturevalue("ceilings")(ranks, case.dtype)
        if ceilings is None:
            return {}
        # Ranks may have different work: the round waits for the slowest.
        works = [result.work for result in per_rank]
        described = [describe_limits(work, ceilings, case.dtype, self._settings.flush, samples, info) for work in works]
        return max(described, key=lambda limits: limits.get("limit_ms", math.inf))

    def quality(self, case: Case) -> dict[str, Any]:
        """What it loses, to stand beside its time; nothing where that is W's, or another row of the session says it."""
        ranks = self._groups.of(*self._cases)
        said = [record["extra_info"] for record in self._request.config.stash[RECORDS]]
        if method_of(case.method)[0].promised(case.picks) != Promise.OWN_WEIGHTS or is_known(
            said, describe_case(0, case, self._settings.device, ranks.size)
        ):
            return {}
        return describe_quality(ranks.run(correctness.lost_by, case.frozen))

    def likeness(self, case: Case) -> dict[str, Any] | None:
        """What another row of the session says of the same network's outputs; None where none does."""
        place = {"label": case.label, **asdict(case)}
        for record in self._request.config.stash[RECORDS]:
            info: dict[str, Any] = record["extra_info"]
            if "network" in info and all(info[name] == value for name, value in place.items()):
                return dict(info["likeness"])
        return None

    def _profile(self, phase: int, case: Case) -> dict[str, Any]:
        """With ``--profile``: traces of what the phase times, and rank 0's kernels with their share of the time."""
        if not self._settings.profile:
            return {}
        trace = trace_folder(self._request.config) / f"{self._request.node.name.replace('/', '_')}-rank{{rank}}.json.gz"
        ranks = self._groups.of(case)
        kernels, *_ = ranks.run(profile.run, case, phase, self._settings.timing, trace.absolute())
        return {
            "traces": [str(trace).replace("{rank}", str(rank)) for rank in range(ranks.size)],
            "kernels": [describe_kernel(kernel) for kernel in kernels],
        }

    def save(self, phase: int, case: Case, samples: list[float], info: dict[str, Any]) -> None:
        """The samples become the benchmark's rounds; the rest its extra_info, and the test's properties."""
        ranks = self._groups.size(*(self._cases or [case]))
        info = {**describe_case(phase, case, self._settings.device, ranks), **info}
        if self._settings.extend:
            info["extend"] = list(self._settings.extend)
        if disturbance := self._watch.disturbance():
            info["clock"] = disturbance
        benchmark = self._request.getfixturevalue("benchmark")
        benchmark.extra_info.update(info)
        for name, value in info.items():
            self._request.node.user_properties.append((name, value))
        clock.replay(benchmark, samples or [0.0])
        named = {"name": benchmark.name, "group": benchmark.group}
        self._request.config.stash[RECORDS].append(named | {"extra_info": info, "stats": {"data": samples}})
        if JOURNAL in self._request.config.stash:
            self._request.config.stash[JOURNAL].benchmark(benchmark)
