"""The phases: each is a record of what its cases are, what runs on the ranks, and what is found, saved and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockshock.measure import Accuracy, ErrorSums, timing
from blockshock.models import build_task
from blockshock.phases import (
    Case,
    backward,
    correctness,
    curves,
    drift,
    ffn,
    ffn_check,
    ffn_step,
    forward,
    network,
    obstacle,
    train,
    trajectory,
)
from blockshock.plugin import blocks, cases, learned
from blockshock.plugin.records import (
    describe_accuracy,
    describe_drift,
    describe_gradient,
    describe_network,
    describe_quality,
    describe_timing,
    describe_training,
    describe_trajectory,
)
from blockshock.plugin.settings import Settings


@dataclass(frozen=True)
class Found:
    """What a phase found of a case.

    Attributes:
        samples: seconds of each round.
        info: what is saved beside them.
        failures: what is wrong, and None for what was looked at and is not; empty where nothing is judged.
    """

    samples: list[float]
    info: dict[str, Any]
    failures: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Phase:
    """One question that is asked of every case of a grid.

    Attributes:
        fixture: by which its test takes a case.
        number, kind: by which its rows are saved: the phase, and what they are.
        title: of its groups in the comparison.
        grid: its cases.
        program: what every rank runs of a case; of a timed one, with the settings' protocol.
        find: what the ranks' results amount to.
        timed: it times its cases, so that they have a limit and can be profiled. Others are judged.
        covered: every pair of choices on small layers is run too.
        backward: cases are differentiated.
        of: what a case is, a ``layer``, a ``block`` or a ``network``. A time of either of the first two stands beside a
            limit and a profile, that of a layer also beside the quality of its W′ and the models that have it.
        obstacle: what a rank says of a case that it cannot run.
    """

    fixture: str
    number: int
    kind: str
    title: str
    grid: Callable[[Settings], list[Case]]
    program: Callable[..., Any]
    find: Callable[[Case, Settings, list[Any]], Found]
    timed: bool = False
    covered: bool = False
    backward: bool = False
    of: str = "layer"
    obstacle: Callable[..., str | None] = obstacle


def _correctness(case: Case, settings: Settings, per_rank: list[correctness.CorrectnessResult]) -> Found:
    accuracy = Accuracy.of(sum((result.errors for result in per_rank), ErrorSums()), per_rank[0].roundings)
    same, differences = _same(per_rank, "outputs")
    info = describe_accuracy(accuracy, *same, per_rank[0].algorithm)
    info |= describe_quality([result.lost for result in per_rank])
    info |= describe_quality([result.lost_by_half for result in per_rank], "quality_of_half")
    again = next((why for result in per_rank if (why := result.called_again) is not None), None)
    return Found(
        timing.slowest([result.seconds for result in per_rank]), info, [accuracy.failure(), *differences, again]
    )


def _gradient(case: Case, settings: Settings, per_rank: list[backward.GradientResult]) -> Found:
    by_loss = {
        loss: Accuracy.of(sum((result.errors[loss] for result in per_rank), ErrorSums()), per_rank[0].roundings)
        for loss in per_rank[0].errors
    }
    same, differences = _same(per_rank, "gradients")
    info = describe_gradient(by_loss, *same, per_rank[0].algorithm)
    wrong = [f"{loss}: {why}" for loss, accuracy in by_loss.items() if (why := accuracy.failure()) is not None]
    return Found(timing.slowest([result.seconds for result in per_rank]), info, [*wrong, *differences])


def _same(per_rank: list[Any], what: str) -> tuple[tuple[bool, bool], list[str | None]]:
    """Whether ranks, and two runs, gave the same bits; and what is wrong where they did not."""
    on_ranks, again = all(result.same_on_ranks for result in per_rank), all(result.same_again for result in per_rank)
    differences = (
        None if on_ranks else f"the ranks' {what} differ in their bits",
        None if again else "two runs with one seed differ in their bits",
    )
    return (on_ranks, again), list(differences)


def _trajectory(case: Case, settings: Settings, per_rank: list[trajectory.TrajectoryResult]) -> Found:
    result, *others = per_rank
    differ = None if all(other == result for other in others) else "the ranks went different ways"
    return Found([], describe_trajectory(result), [result.failure(), differ])


def _drift(case: Case, settings: Settings, per_rank: list[drift.DriftResult]) -> Found:
    result, *others = per_rank
    differ = None if all(other == result for other in others) else "the ranks drift apart"
    return Found([], describe_drift(result), [result.failure(), differ])


def _forward(case: Case, settings: Settings, per_rank: list[forward.TimingResult]) -> Found:
    return Found(_rounds(per_rank), describe_timing(case, settings, per_rank))


def _backward(case: Case, settings: Settings, per_rank: list[forward.TimingResult]) -> Found:
    return Found(_rounds(per_rank), describe_timing(case, settings, per_rank, products=2))


def _training(case: Case, settings: Settings, per_rank: list[train.TrainingResult]) -> Found:
    return Found(_rounds(per_rank), describe_training(case, settings, per_rank))


def _network(case: Case, settings: Settings, per_rank: list[network.NetworkResult]) -> Found:
    assert isinstance(case, network.NetworkCase)
    return Found(_rounds(per_rank), describe_network(case, settings, per_rank))


def _block(case: Case, settings: Settings, per_rank: list[forward.TimingResult]) -> Found:
    return Found(_rounds(per_rank), describe_timing(case, settings, per_rank, products=6))


def _block_check(case: Case, settings: Settings, per_rank: list[ffn_check.FFNCheck]) -> Found:
    return Found([], describe_trajectory(per_rank[0]), [per_rank[0].failure()])


def _curves(case: Case, settings: Settings, per_rank: list[curves.CurvesResult]) -> Found:
    assert isinstance(case, curves.CurveCase)
    result = per_rank[0]
    again = "two runs with one seed differ in their bits" if result.same_again is False else None
    failure = result.failure(case, build_task(case.workload).steps.get(settings.device, 0))
    return Found(result.step_seconds(), learned.describe_curves(case, result), [failure, again])


def _rounds(per_rank: list[Any]) -> list[float]:
    """Of each round the time of the slowest rank."""
    return timing.slowest([result.samples for result in per_rank])


CORRECTNESS = Phase(
    *("correctness_case", 0, "accuracy", "phase 0", cases.forward_grid, correctness.run, _correctness), covered=True
)
FORWARD = Phase("forward_case", 1, "forward", "phase 1", cases.forward_grid, forward.run, _forward, timed=True)
GRADIENT = Phase(
    *("gradient_case", 2, "accuracy", "phase 2 grad_X", cases.backward_grid, backward.check, _gradient),
    covered=True,
    backward=True,
)
BACKWARD = Phase(
    *("backward_case", 2, "backward", "phase 2", cases.backward_grid, backward.run, _backward),
    timed=True,
    backward=True,
)
TRAJECTORY = Phase(
    *("trajectory_case", 3, "trajectory", "phase 3 beside dense", cases.trajectories, trajectory.run, _trajectory)
)
TRAINING = Phase("training_case", 3, "training", "phase 3", cases.training_grid, train.run, _training, timed=True)
DRIFT = Phase("drift_case", 0, "drift", "drift", cases.drifts, drift.run, _drift)
NETWORK = Phase(
    *("network_case", 4, "network", "phase 4", cases.networks, network.run, _network),
    timed=True,
    of="network",
    obstacle=network.obstacle,
)
CURVES = Phase(
    *("curve_case", 5, "learning", "phase 5", learned.curves, curves.run, _curves),
    obstacle=curves.obstacle,
)
BLOCK = Phase(
    *("block_case", 6, "ffn", "phase 6", blocks.blocks, ffn_step.run, _block),
    timed=True,
    of="block",
    obstacle=ffn.obstacle,
)
BLOCK_CHECK = Phase(
    *("checked_block", 6, "trajectory", "phase 6 beside its definition", blocks.checked, ffn_check.run, _block_check),
    of="block",
    obstacle=ffn.obstacle,
)
_ALL = (CORRECTNESS, FORWARD, GRADIENT, BACKWARD, TRAJECTORY, TRAINING, DRIFT, NETWORK, CURVES, BLOCK, BLOCK_CHECK)
PHASES = {phase.fixture: phase for phase in _ALL}
"""By the fixture that their tests take."""
