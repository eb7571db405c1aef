"""What the tests of the phases are run with: the cases of their grids, each with its id, its group and its marker."""

from __future__ import annotations

from typing import Any

import pytest

from blockshock.methods import Span
from blockshock.phases import Case, Claim
from blockshock.plugin.blocks import block_hypotheses
from blockshock.plugin.cases import cover, hypotheses, network_hypotheses
from blockshock.plugin.clock import clock
from blockshock.plugin.phases import PHASES
from blockshock.plugin.records import cover_group, group_name
from blockshock.plugin.settings import Settings
from blockshock.ranks import Place

CLAIMS = {"claim": hypotheses, "network_claim": network_hypotheses, "block_claim": block_hypotheses}
"""Those that are made of the settings, by the fixture that their test takes."""
FIXTURES = {*PHASES, *CLAIMS}
"""That tests take a case by, or a claim."""


def of(fixture: str, settings: Settings) -> list[Any]:
    """Its parameters, and a reminder of what this session does not measure."""
    if fixture in CLAIMS:
        claims = CLAIMS[fixture](settings)
        found = [_parameter(claim, claim.group, settings, claim.case, *claim.rivals) for claim in claims]
        return [*found, _reminder(settings)]
    phase = PHASES[fixture]
    on_grid = phase.grid(settings)
    found = [_parameter(case, group_name(phase.title, case), settings, case) for case in on_grid]
    if phase.covered:
        small = cover(settings, on_grid)
        found += [_parameter(case, cover_group(phase.title), settings, case) for case in small]
    return [*found, _reminder(settings)]


def _parameter(found: Case | Claim, group: str, settings: Settings, *cases: Case) -> Any:
    """A case, or a claim about some."""
    marks = [pytest.mark.benchmark(timer=clock, group=group)]
    alone = all(case.span == Span.ONE for case in cases)
    marks += [getattr(pytest.mark, marker) for marker in _markers(settings, alone)]
    return pytest.param(found, id=found.id, marks=marks)


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
