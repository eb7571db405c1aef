"""What rows with weights of their own lose, in words."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from blockshock.report.tables import Info
from blockshock.saved import or_inf

KEEPS_W = ("kernel", "storage")
"""What is picked without another W′: rows that differ in nothing else lose the same."""
LEAVE_NO_ZEROS = (*KEEPS_W, "combine", "format", "recipe")
"""What is picked for a row, and zeroes nothing of a W by itself."""
MOST_CHOICES = 3


def lost(infos: list[Info]) -> str:
    """What each choice of W′ loses of the output, the median over its layers; the least first, and of many the least
    and the most. Nothing was trained since W′ was made. Empty where the run does not say."""
    errors: dict[str, list[float]] = defaultdict(list)
    for info in infos:
        if "loses" in info:
            picked = (spec for axis, spec in info["picks"].items() if axis not in KEEPS_W)
            errors[" ".join(picked)].append(info["loses"]["output_error"])
    if not errors:
        return ""
    medians = {picked: statistics.median(map(or_inf, found)) for picked, found in errors.items()}
    ranked = sorted(medians.items(), key=lambda one: or_inf(one[1]))
    told = [f"{_told(error)} ({picked})" if len(ranked) > 1 else _told(error) for picked, error in ranked]
    shown = f"{told[0]} to {told[-1]}" if len(told) > MOST_CHOICES else ", ".join(told)
    return f"{shown} of the output before retraining"


def _told(error: float) -> str:
    """What is no number says nothing of how much is lost, and is ranked as the worst."""
    return f"{error:.3f}" if math.isfinite(error) else "an unknown part"
