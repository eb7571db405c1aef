"""Phase 5: which recipes learn what, and what is saved of it, by seed."""

from __future__ import annotations

from typing import Any

from blockshock.models import build_task, text
from blockshock.phases import Case, CurveCase, CurvesResult, curve_case
from blockshock.plugin.options import DEFAULT_LEARNING, DEFAULT_SEEDS
from blockshock.plugin.settings import Settings
from blockshock.training import is_of_blocks


def curves(settings: Settings) -> list[Case]:
    """Each recipe in each task, dense training first: in bf16 on a GPU, for three seeds; in float32 on a CPU, for one.

    Of recipes those that were asked for, or what is usual.
    """
    if settings.methods and "recipe" not in settings.methods:
        return []
    recipes = settings.axes["recipe"] or DEFAULT_LEARNING[settings.device]
    dtype, seeds = ("bf16" if settings.device == "cuda" else "fp32"), DEFAULT_SEEDS[settings.device]
    return [
        curve_case(recipe, task, settings.device, dtype, settings.seed, settings.steps, seeds, settings.corpus)
        for task in settings.tasks
        for recipe in dict.fromkeys(("dense", *recipes))
    ]


def describe_curves(case: CurveCase, result: CurvesResult) -> dict[str, Any]:
    """Phase 5: what was left to learn at each look, after so many seconds, by seed; and what a step took."""
    task, curves = build_task(case.workload), result.curves
    flip_rates = [sum(curve.flip_rate) / len(curve.flip_rate) for curve in curves]
    info = {
        "curve_steps": result.at,
        "curve_bits": [curve.bits for curve in curves],
        "curve_seconds": [curve.seconds for curve in curves],
        "curve_flip_rate": [curve.flip_rate for curve in curves],
        "begin_bits": result.begin_bits,
        "last_bits": sum(curve.bits[-1] for curve in curves) / len(curves),
        "step_ms": [curve.seconds[-1] / case.steps * 1e3 for curve in curves],
        "unit": task.unit,
        "bits_margin": task.margin,
        "timing": "eager" if result.eager is None else "cuda_graph",
        "data": result.data,
        "corpus": None if case.corpus is None else text.CORPUS,  # where it lies is nobody's business
        "schedule": result.recipe,
        "parameters": result.parameters,
        "replaced": result.replaced,
        "algorithm": result.algorithm,
    }
    if result.eager is not None:
        info["eager_step_ms"] = result.eager * 1e3
    if result.compiled is not None:
        info["compiled_step_ms"] = result.compiled * 1e3
    if result.not_compiled is not None:
        info["not_compiled"] = result.not_compiled
    if result.replaced and not is_of_blocks(case.picks["recipe"]):  # whose weights have no masks
        info["mean_flip_rate"] = sum(flip_rates) / len(flip_rates)
    return info if result.same_again is None else info | {"same_again": result.same_again}
