"""Which of several cases is the fastest at a point: each is timed once in a session, on its ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from blockshock.measure import timing
from blockshock.phases import Case, compare, obstacle
from blockshock.plugin.groups import Groups
from blockshock.plugin.settings import Settings
from blockshock.ranks import Ranks

Time = Callable[..., list[float]]
Obstacle = Callable[..., str | None]


@dataclass
class Rivals:
    """Picks the fastest of several cases by the medians of one build of each, and keeps these for the session.

    The pair with the one that was picked is then measured afresh, since the fastest of several is, as measured, a
    little faster than it is.
    """

    settings: Settings
    groups: Groups
    _timed: dict[tuple[Case, int], float | str] = field(default_factory=dict)

    def fastest(
        self,
        cases: Sequence[Case],
        beside: Case,
        time: Time = compare.one_build,
        obstacle: Obstacle = obstacle,
    ) -> tuple[Case, dict[str, float]]:
        """The fastest of those that can run here, and medians in ms by label; of a single case there are none.

        Skips the test, with the reasons, where none can run.

        Args:
            beside: what they are compared with; each is timed on the ranks that it takes with that.
            time: what a rank runs to time a case.
            obstacle: what a rank says of a case that it cannot run.
        """
        if len(cases) == 1:
            return cases[0], {}
        found = {case: self._median_ms(case, self.groups.of(case, beside), time, obstacle) for case in cases}
        timed = {case: ms for case, ms in found.items() if isinstance(ms, float)}
        if not timed:
            pytest.skip("; ".join(dict.fromkeys(str(reason) for reason in found.values())))
        return min(timed, key=lambda case: timed[case]), {case.label: ms for case, ms in timed.items()}

    def _median_ms(self, case: Case, ranks: Ranks, time: Time, obstacle: Obstacle) -> float | str:
        """Or why it cannot run here."""
        if (case, ranks.size) not in self._timed:
            reasons = [reason for reason in ranks.run(obstacle, case) if reason]
            self._timed[case, ranks.size] = reasons[0] if reasons else self._time(case, ranks, time)
        return self._timed[case, ranks.size]

    def _time(self, case: Case, ranks: Ranks, time: Time) -> float:
        per_rank: list[list[float]] = ranks.run(time, case, *self.settings.protocol)
        return timing.percentile(timing.slowest(per_rank), 50) * 1e3
