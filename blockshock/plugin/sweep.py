"""``--sweep N`` and ``--sweep B``: a range of sizes.

What does not fit into memory is skipped with its estimate, as everywhere.
"""

from __future__ import annotations

import pytest

AXES = {
    "N": {"cpu": "128,256,512", "cuda": "4096,8192,16384,32768,40960,65536,81920"},
    "B": {"cpu": "4,16,64", "cuda": "16,64,256,1024,4096,16384"},
}
BESIDE = {"N": {"cpu": "256", "cuda": "8192"}, "B": {"cpu": "16", "cuda": "64,1024"}}
"""The other axis, where it is not given: few values, for a sweep is long enough."""


def defaults(asked: str | None, device: str, given: dict[str, str | None], otherwise: dict[str, str]) -> dict[str, str]:
    """The values of --N and --B: those given, else those of the sweep, else, where nothing is swept, the usual ones.

    Raises:
        pytest.UsageError: an axis that is none, or one that is swept and given.
    """
    axes = [] if asked is None else [axis.strip() for axis in asked.split(",") if axis.strip()]
    if asked is not None and not axes:
        raise pytest.UsageError(f"--sweep is empty. Choices: {', '.join(AXES)}")
    for axis in axes:
        if axis not in AXES:
            raise pytest.UsageError(f"--sweep takes {' and '.join(AXES)}, got {axis!r}")
        if given[axis] is not None:
            raise pytest.UsageError(f"--sweep {axis} and --{axis} {given[axis]} say two things: give one of them")
    usual = {axis: (AXES if axis in axes else BESIDE)[axis][device] for axis in AXES} if axes else otherwise
    return usual | {axis: text for axis, text in given.items() if text is not None}
