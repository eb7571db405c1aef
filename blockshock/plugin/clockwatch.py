"""What happened to the machine's clocks while something was measured. Durations come from monotonic clocks throughout.

Those stand still while the machine sleeps, and know nothing of a wall clock that is set. So no duration is wrong; but
caches and clock rates are not what they were, and the times of day of a run are not in the order of its results.
"""

from __future__ import annotations

import time

LEAST_SECONDS = 1.0
"""What counts as a step: far more than it takes to read the clocks, or than slewing moves one against another."""


class ClockWatch:
    """Compares the clocks with what they were when it was made."""

    def __init__(self) -> None:
        self._before = _read()

    def disturbance(self) -> str | None:
        """What happened since, for a reader; None if nothing did."""
        wall, boot, running = (now - then for now, then in zip(_read(), self._before, strict=True))
        told = []
        if boot - running > LEAST_SECONDS:
            told.append(f"the machine was suspended for {boot - running:.1f} s")
        if abs(stepped := wall - boot) > LEAST_SECONDS:
            told.append(f"the wall clock stepped {'forward' if stepped > 0 else 'back'} by {abs(stepped):.1f} s")
        return ", ".join(told) or None


def _read() -> tuple[float, float, float]:
    """The wall clock; time since boot; time that the machine ran since boot. All at one moment."""
    while True:
        began = time.clock_gettime(time.CLOCK_MONOTONIC)
        wall, boot = time.clock_gettime(time.CLOCK_REALTIME), time.clock_gettime(time.CLOCK_BOOTTIME)
        running = time.clock_gettime(time.CLOCK_MONOTONIC)
        if running - began < LEAST_SECONDS / 10:  # or this process had to wait between two readings
            return wall, boot, running
