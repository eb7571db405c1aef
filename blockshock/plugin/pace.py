"""How long the rest of a session takes, by how long what is done of it took.

Each test has a usual time, by what it does and at which size; a session's own pace is how its tests compare with that.
What is of one kind keeps to a pace of its own once some of it is done; until then to that of the others. On a busy
machine some of those take a hundred times what the next one takes, and what they have in common with another kind is
what most of them took: so beyond twice their median none counts there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from blockshock.phases import Case, Claim

USUAL = {
    "cpu": {
        "correctness_case": (0.02, 5e-8, 1e-10),
        "forward_case": (0.11, 7e-8, 4e-10),
        "gradient_case": (0.02, 1e-7, 2e-10),
        "backward_case": (0.12, 6e-8, 8e-10),
        "trajectory_case": (0.15, 4e-7, 0.0),
        "training_case": (0.2, 1e-7, 1e-9),
        "drift_case": (0.25, 0.0, 0.0),
        "network_case": (4.0, 0.0, 0.0),
        "curve_case": (1.5, 0.0, 0.0),
        "block_case": (0.3, 0.0, 3e-9),
        "checked_block": (0.4, 0.0, 0.0),
        "ffn claim": (0.5, 0.0, 6e-9),
        "forward claim": (0.1, 1.2e-7, 5e-10),
        "training claim": (0.2, 2e-7, 1e-9),
        "network claim": (8.0, 0.0, 0.0),
    },
    "cuda": {
        "correctness_case": (0.18, 1.2e-10, 2.4e-13),
        "forward_case": (0.2, 2e-10, 1e-12),
        "gradient_case": (0.2, 2e-10, 4e-13),
        "backward_case": (0.2, 2e-10, 1.3e-12),
        "trajectory_case": (0.9, 0.0, 0.0),
        "training_case": (0.66, 6.8e-10, 3.4e-12),
        "drift_case": (0.7, 0.0, 0.0),
        "network_case": (5.0, 0.0, 0.0),
        "curve_case": (40.0, 0.0, 0.0),
        "block_case": (3.0, 0.0, 7e-12),
        "checked_block": (1.0, 0.0, 0.0),
        "ffn claim": (6.0, 0.0, 1.2e-11),
        "forward claim": (0.6, 1.6e-9, 8e-13),
        "training claim": (2.0, 4e-9, 4e-12),
        "network claim": (20.0, 0.0, 0.0),
    },
}
"""Seconds of a test by the device type and by what it is: of any, more for each weight, more for each product."""
OTHER = "other"
OTHERS_SECONDS = 0.05
TRUSTED = 3
"""So many tests of a kind count as much as the pace of all others."""
MOST = 2
"""Times the median pace of all tests: beyond that none counts for another kind."""


def usual_seconds(device: str, kind: str, N: int, K: int, B: int) -> float:
    """Of a test of that kind at a point."""
    fixed, weight, product = USUAL[device][kind]
    return fixed + weight * N * K + product * N * K * B


@dataclass(frozen=True)
class Usual:
    """What a test is, and how long it usually takes."""

    kind: str
    seconds: float

    @classmethod
    def of(cls, parameters: Mapping[str, Any], device: str) -> Usual:
        """Of a test, by what it is run with."""
        for fixture, about in parameters.items():
            case = about.case if isinstance(about, Claim) else about
            kind = f"{about.hypothesis.passes[-1]} claim" if isinstance(about, Claim) else fixture
            if isinstance(case, Case) and kind in USUAL[device]:
                return cls(kind, usual_seconds(device, kind, case.N, case.K, case.B))
        return cls(OTHER, OTHERS_SECONDS)


class Pace:
    """Keeps what is left, and how long what was done took.

    Args:
        tests: what each of them is, by its id.
    """

    def __init__(self, tests: Mapping[str, Usual]) -> None:
        self._left = dict(tests)
        self._took: defaultdict[str, float] = defaultdict(float)
        self._usual: defaultdict[str, float] = defaultdict(float)
        self._paces: list[tuple[float, float]] = []  # of each that is done, in order of size, with its usual seconds
        of_kind: defaultdict[str, list[float]] = defaultdict(list)
        for test in tests.values():
            of_kind[test.kind].append(test.seconds)
        self._mean = {kind: fmean(seconds) for kind, seconds in of_kind.items()}

    def done(self, test: str, seconds: float | None) -> None:
        """One is; None for one that was skipped, which says nothing of the others."""
        usual = self._left.pop(test, None)
        if usual is not None and seconds is not None:
            self._took[usual.kind] += seconds
            self._usual[usual.kind] += usual.seconds
            insort(self._paces, (seconds / usual.seconds, usual.seconds))

    def seconds_left(self) -> float | None:
        """Of all tests that are left; None as long as none was done."""
        if not self._paces:
            return None
        everyones = self._everyones()
        return sum(test.seconds * self._of(test.kind, everyones) for test in self._left.values())

    def _everyones(self) -> float:
        """The pace of what is done: the mean, but none beyond a bound that the median sets."""
        whole = sum(usual for _, usual in self._paces)
        middle = (bisect_left(list(accumulate(usual for _, usual in self._paces)), whole / 2), len(self._paces) - 1)
        bound = MOST * self._paces[min(middle)][0]
        return sum(min(pace, bound) * usual for pace, usual in self._paces) / whole

    def _of(self, kind: str, everyones: float) -> float:
        """The pace of a kind: times what is usual."""
        trusted = TRUSTED * self._mean[kind]
        return (self._took[kind] + trusted * everyones) / (self._usual[kind] + trusted)
