"""What the tests of the phases are run with: the cases of their grids, each with its id, its group and its marker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blockshock.methods import Span
from blockshock.phases import Case, Claim
from blockshock.plugin import cases
from blockshock.plugin.clock import clock
from blockshock.plugin.records import cover_group, group_name
from blockshock.plugin.settings import Settings
from blockshock.ranks import Place

CASES: dict[str, tuple[str, Callable[[Settings], list[Any]], Callable[[Settings, list[Case]], list[Case]] | None]] = {
    "correctness_case": ("phase 0", cases.forward_grid, cases.cover),
    "forward_case": ("phase 1", cases.forward_grid, None),
    "gradient_case": ("phase 2 grad_X", cases.backward_grid, cases.cover),
    "backward_case": ("phase 2", cases.backward_grid, None),
    "trajectory_case": ("phase 3 beside dense", cases.trajectories, None),
    "training_case": ("phase 3", cases.training_grid, None),
    "claim": ("", cases.hypotheses, None),
    "drift_case": ("drift", cases.drifts, None),
}
"""Of each fixture that a phase's test takes: what its groups are called, its grid, and the small cases beside it."""


def of(fixture: str, settings: Settings) -> list[Any]:
    """Its parameters, and a reminder of what this session does not measure."""
    title, grid, cover = CASES[fixture]
    on_grid = grid(settings)
    found = [_parameter(case, group_name(title, case), settings) for case in on_grid]
    if cover is not None:
        found += [_parameter(case, cover_group(title), settings) for case in cover(settings, on_grid)]
    return [*found, _reminder(settings)]


def _parameter(case: Case | Claim, group: str, settings: Settings) -> Any:
    cases = (case.case, *case.rivals) if isinstance(case, Claim) else (case,)
    marks = [pytest.mark.benchmark(timer=clock, group=group)]
    marks += [getattr(pytest.mark, marker) for marker in _markers(settings, all(c.span is Span.ONE for c in cases))]
    return pytest.param(case, id=case.id, marks=marks)


def _markers(settings: Settings, alone: bool) -> list[str]:
    """What selects a test; one that needs one GPU alone, by both, so that ``-m gpu`` runs it where there are more."""
    both = settings.marker == "gpu2" and alone and Place.here() is None
    return ["gpu", "gpu2"] if both else [settings.marker] if settings.marker else []


def _reminder(settings: Settings) -> Any:
    """A skipped test for those who ask for ``-m gpu`` or ``-m gpu2`` where this session does not measure that."""
    here = "; `pytest -m 'correctness or bench'` runs it on CPU ranks"
    markers, why = {
        None: (["gpu", "gpu2"], f"needs CUDA GPUs, and --device auto or cuda{here}"),
        "gpu": (["gpu2"], "needs two CUDA GPUs, and --ranks 2 or more"),
        "gpu2": (["gpu"], f"all else needs --ranks 1: {settings.ranks} ranks are what -m gpu2 runs"),
    }[settings.marker]
    marks = [getattr(pytest.mark, marker) for marker in markers]
    return pytest.param(None, id="gpus", marks=[*marks, pytest.mark.skip(reason=why)])
