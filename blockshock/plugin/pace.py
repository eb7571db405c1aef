"""How long the rest of a session takes, by how long what is done of it took.

Each test has a usual time, by what it does and at which size; a session's own pace is how its tests compare with that.
What is of one kind keeps to a pace of its own once some of it is done; until then to that of the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from blockshock.phases import Case, Claim

USUAL = {
    "cpu": {
        "correctness_case": (0.015, 5e-8, 1e-10),
        "forward_case": (0.11, 7e-8, 4e-10),
        "gradient_case": (0.02, 1e-7, 2e-10),
        "backward_case": (0.12, 6e-8, 8e-10),
        "trajectory_case": (0.15, 4e-7, 0.0),
        "training_case": (0.2, 1e-7, 1e-9),
        "drift_case": (0.25, 0.0, 0.0),
        "forward claim": (0.1, 1.2e-7, 5e-10),
        "training claim": (0.2, 2e-7, 1e-9),
    },
    "cuda": {
        "correctness_case": (0.15, 1e-10, 2e-13),
        "forward_case": (0.2, 2e-10, 1e-12),
        "gradient_case": (0.2, 2e-10, 4e-13),
        "backward_case": (0.3, 3e-10, 2e-12),
        "trajectory_case": (0.5, 0.0, 0.0),
        "training_case": (0.6, 6e-10, 3e-12),
        "drift_case": (0.7, 0.0, 0.0),
        "forward claim": (0.8, 2e-9, 1e-12),
        "training claim": (2.0, 4e-9, 4e-12),
    },
}
"""Seconds of a test by the device type and by what it is: of any, more for each weight, more for each product."""
OTHER = "other"
OTHERS_SECONDS = 0.05
TRUSTED = 3
"""So many tests of a kind count as much as the pace of all others."""


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
                fixed, weight, product = USUAL[device][kind]
                return cls(kind, fixed + weight * case.N * case.K + product * case.N * case.K * case.B)
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

    def seconds_left(self) -> float | None:
        """Of all tests that are left; None as long as none was done."""
        usual = sum(self._usual.values())
        if not usual:
            return None
        everyones = sum(self._took.values()) / usual
        return sum(test.seconds * self._of(test.kind, everyones) for test in self._left.values())

    def _of(self, kind: str, everyones: float) -> float:
        """The pace of a kind: times what is usual."""
        trusted = TRUSTED * self._mean[kind]
        return (self._took[kind] + trusted * everyones) / (self._usual[kind] + trusted)
