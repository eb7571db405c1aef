"""What a recipe learns: a small model is trained by it, for several seeds, and is judged by what was held out.

Every recipe of a task sees the same tokens in the same order, from the same weights: those of a seed. It trains the
feed-forward parts, as its papers do, with the hyper-parameters of its paper; what its paper has by the length of
training is scaled to that of this one. ``dense`` is the model as it is. On a GPU steps are CUDA graphs, for all alike:
what is compared is what a GPU does, not what Python does. What eager steps take is said beside it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise

import torch

from blockshock.machine import memory
from blockshock.models import Task, build_task
from blockshock.phases.case import Case, this_device, unavailable
from blockshock.phases.compilers import why_not_compiled
from blockshock.phases.pupil import DENSE, Curve, Pupil, linears_meant
from blockshock.registry import parse_spec
from blockshock.training import BLOCK_RECIPES, RECIPES, Recipe, any_recipe_of, is_of_blocks

LOOKS = 10
"""How often what is held out is looked at."""
WARMUP_STEPS, TIMED_STEPS = 6, 20
"""Of a model that is thrown away, by a schedule of its own: kernels are compiled and searched for before the clock.
And how many are timed on a GPU, of eager steps and of a compiled model."""


@dataclass(frozen=True)
class CurveCase(Case):
    """A recipe in a model that learns a task, which is the ``workload``; N and K are those of the largest layer that it
    trains, and B the predictions of a step.

    Attributes:
        steps: of training.
        seeds: so many, from ``seed`` on.
        corpus: the file of the collected text; None for what is committed.
    """

    steps: int = 1
    seeds: int = 1
    corpus: str | None = None

    @property
    def point(self) -> str:
        return "-".join([self.workload, f"S{self.steps}", self.dtype])

    @property
    def place(self) -> list[str]:
        return [self.workload, f"{self.steps} steps", self.dtype]

    @property
    def recipe(self) -> str:
        """With what its paper has by the length of training, unless its spec says it."""
        return self.recipe_for(self.steps)

    def recipe_for(self, steps: int) -> str:
        """The same for so many steps; of blocks with the activation function of the task, unless its spec says one."""
        spec = scaled(self.picks["recipe"], steps)
        says = "act" in parse_spec(spec)[1] or not is_of_blocks(spec)
        return spec if says else f"{spec}:act={build_task(self.workload).act}"


def curve_case(
    recipe: str, task: str, device_type: str, dtype: str, seed: int, steps: int | None, seeds: int, corpus: str | None
) -> CurveCase:
    """A recipe in a task, for so many steps or as many as that usually has."""
    found = build_task(task)
    with torch.device("meta"):
        layers = linears_meant(found.skeleton(device_type), found).values()
    widest = max(layers, key=lambda linear: linear.in_features * linear.out_features)
    size = (widest.out_features, widest.in_features, found.tokens(device_type), dtype, seed)
    steps = found.steps[device_type] if steps is None else steps
    return CurveCase("recipe", {"recipe": recipe}, task, *size, steps=steps, seeds=seeds, corpus=corpus)


def scaled(spec: str, steps: int) -> str:
    """The spec of a recipe for so many steps."""
    name, said = parse_spec(spec)
    kind: type[Recipe] = (BLOCK_RECIPES if is_of_blocks(spec) else RECIPES).get(name)
    more = {key: value for key, value in kind.scaled(steps).items() if key not in said}
    return ":".join([spec.strip(), *(f"{key}={value}" for key, value in more.items())])


@dataclass
class CurvesResult:
    """What was learned.

    Attributes:
        at: steps at which it was looked.
        curves: by seed.
        begin_bits: before the first step.
        same_again: whether the first seed gave the same bits once more; None where that was not tried, on a GPU.
        data: what it learned from, in words.
        recipe: its spec with all of its schedule.
        parameters: of the model; ``replaced`` layers are the recipe's.
        eager: seconds of an eager step, by a short schedule of its own, where those of the curves are captured.
        compiled: seconds of a step of the compiled model, of dense training on a GPU; or why there are none.
    """

    at: list[int]
    curves: list[Curve]
    begin_bits: float
    same_again: bool | None
    data: str
    recipe: str
    parameters: int
    replaced: int
    algorithm: str
    eager: float | None = None
    compiled: float | None = None
    not_compiled: str | None = None

    def step_seconds(self) -> list[float]:
        """A step of each stretch from look to look, of all seeds."""
        counts = [after - before for before, after in pairwise([0, *self.at])]
        return [
            (after - before) / count
            for curve in self.curves
            for (before, after), count in zip(pairwise([0.0, *curve.seconds]), counts, strict=True)
        ]

    def failure(self, case: CurveCase, usual: int = 0) -> str | None:
        """None if each seed learned, else a sentence that says which did not.

        Args:
            usual: steps from which on it must have; of fewer the loss must be a number still.
        """
        least = build_task(case.workload).learnt if case.steps >= usual else -sys.float_info.max
        for number, curve in enumerate(self.curves):
            if not self.begin_bits - curve.bits[-1] >= least:  # so that NaN fails
                must = f", and must fall by {least:g}" if least > 0 else ""
                told = f"from {self.begin_bits:.3g} to {curve.bits[-1]:.3g} bits{must}"
                return f"seed {case.seed + number}: nothing was learned: the loss went {told}"
        return None


def obstacle(case: CurveCase, backward: bool = False, builds: int = 1) -> str | None:
    """None if this rank can run the case, else one sentence that says why not. Allocates nothing of size."""
    device = this_device()
    if reason := unavailable(case, device, True) or _unsuitable(case):
        return reason
    needed, free = int(build_task(case.workload).gib[device.type] * 2**30), memory.free_bytes(device)
    return f"needs about {memory.gib(needed)} on {device}, {memory.gib(free)} are free" if needed > free else None


def _unsuitable(case: CurveCase) -> str | None:
    recipe = any_recipe_of(case.recipe)
    act, has = getattr(recipe, "act", None), build_task(case.workload).act
    if act not in (None, has):
        task = parse_spec(case.workload)[0]
        return f"its activation function is {act}, that of the model {has}: take --tasks {task}:act={act}"
    return recipe.unsuitable(case.N, case.K)


def run(case: CurveCase) -> CurvesResult:
    """Train the case's model for each of its seeds on this rank."""
    device, task = this_device(), build_task(case.workload)
    data = task.load(device, case.corpus)
    at = list(dict.fromkeys(max(1, case.steps * (look + 1) // LOOKS) for look in range(LOOKS)))
    begin_bits, eager = _warm_up(case, task)
    curves = []
    for number in range(case.seeds):
        pupil = None  # what it holds is free before the next one is made
        pupil = Pupil(task, device, case.recipe, case.steps, case.seed + number)
        pupil.capture()
        curves.append(pupil.learn(at))
    assert pupil is not None
    again = None
    if device.type == "cpu":
        again = Pupil(task, device, case.recipe, case.steps, case.seed).learn(at).bits == curves[0].bits
    compiled, why = _compiled(case, task) if device.type == "cuda" and case.recipe == DENSE else (None, None)
    return CurvesResult(
        at=at,
        curves=curves,
        begin_bits=begin_bits,
        same_again=again,
        data=data,
        recipe=case.recipe,
        parameters=sum(held.numel() for held in pupil.model.parameters()),
        replaced=pupil.replaced,
        algorithm=pupil.algorithm,
        eager=eager,
        compiled=compiled,
        not_compiled=why,
    )


def _warm_up(case: CurveCase, task: Task) -> tuple[float, float | None]:
    """Bits before the first step; seconds of an eager step, where others are captured."""
    device = this_device()
    timed = TIMED_STEPS if device.type == "cuda" else 0
    pupil = Pupil(task, device, case.recipe_for(WARMUP_STEPS + timed), WARMUP_STEPS + timed, case.seed)
    begin_bits = pupil.bits()
    pupil.learn([WARMUP_STEPS])
    return begin_bits, pupil.learn([WARMUP_STEPS + timed]).seconds[-1] / timed if timed else None


def _compiled(case: CurveCase, task: Task) -> tuple[float | None, str | None]:
    """Seconds of a step of the compiled model, or why there are none: that is no fault of the recipe's."""
    try:
        pupil = Pupil(task, this_device(), case.recipe, case.steps, case.seed)
        pupil.compile()
        pupil.learn([WARMUP_STEPS])
        pupil.capture()
        return pupil.learn([WARMUP_STEPS + TIMED_STEPS]).seconds[-1] / TIMED_STEPS, None
    except Exception as error:  # whatever a compiler raises
        return None, why_not_compiled(error)
    finally:
        torch.compiler.reset()
