"""What a benchmark saves beside its samples: the numbers of each phase, with their units in their names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from blockshock.measure import Accuracy, QualitySums, timing
from blockshock.methods import AXES, method_of
from blockshock.phases import (
    Case,
    Claim,
    DriftResult,
    FFNCheck,
    KernelTime,
    LearningResult,
    NetworkCase,
    NetworkResult,
    TimingResult,
    TrainingResult,
    TrajectoryResult,
    alternatives,
)
from blockshock.plugin.settings import Settings
from blockshock.saved import MEASURED, or_inf
from blockshock.saved.pairs import MARGIN, ratio_of_pairs

Pairs = dict[str, dict[str, Any]]
"""Seconds of each round by pass, then of the ``first`` and the ``second`` of a pair, by block."""


def cover_group(title: str) -> str:
    """The group of the small cases beside the grid, which are not comparable line by line."""
    return f"{title} pairs of choices on small layers"


def describe_case(phase: int, case: Case, device: str, ranks: int) -> dict[str, Any]:
    """The part of extra_info that says what was run, where, and beside what; and what it is until it is judged."""
    kind, _ = method_of(case.method)
    return {
        "phase": phase,
        "label": case.label,
        "role": str(kind.plays(case.picks)),
        "promise": str(kind.promised(case.picks)),
        "span": str(kind.span),
        **dict.fromkeys(AXES.names()),
        **case.picks,
        **asdict(case),
        "point": case.point,
        "rivals": dict.fromkeys(alternatives(case.method)),
        "status": MEASURED,
        "device": device,
        "ranks": ranks,
    }


def describe_layers(case: Case, settings: Settings) -> dict[str, Any]:
    """What the point stands for: the layers of models, or of a file, with how many there are of each and of all."""
    every = Counter[str]()
    for use in settings.layers:
        every[use.model] += use.count
    listed = [(use.N, use.K, use.B, use.count) for use in settings.layers if use.B is not None]
    digest = {"list": hashlib.sha256(repr(listed).encode()).hexdigest()[:8]} if listed else {}
    found = [
        {"model": use.model, "name": use.name, "count": use.count, "of": every[use.model], "listed": bool(listed)}
        | digest
        for use in settings.uses(case.N, case.K, case.B)
    ]
    return {"layers": found} if found else {}


def group_name(title: str, case: Case) -> str:
    """One group of the comparison: what can be compared line by line."""
    return " ".join([title, *case.place])


def describe_accuracy(accuracy: Accuracy, same_on_ranks: bool, same_again: bool, algorithm: str) -> dict[str, Any]:
    """Phase 0: errors against float64 and what they are compared with."""
    return {**asdict(accuracy), "same_on_ranks": same_on_ranks, "same_again": same_again, "algorithm": algorithm}


def describe_quality(per_rank: Sequence[QualitySums | None], name: str = "quality") -> dict[str, Any]:
    """What W′ loses against W, of rows that promise to be right for W′; or, by another name, of halves."""
    parts = [sums for sums in per_rank if sums is not None]
    return {name: sum(parts, QualitySums()).quality()} if parts else {}


def describe_gradient(
    by_loss: dict[str, Accuracy], same_on_ranks: bool, same_again: bool, algorithm: str
) -> dict[str, Any]:
    """Phase 2: errors of grad_X of each loss, those of the worst first."""
    worst = max(by_loss.values(), key=lambda accuracy: accuracy.error_ratio / accuracy.error_ratio_limit)
    losses = {loss: asdict(accuracy) for loss, accuracy in by_loss.items()}
    return {**describe_accuracy(worst, same_on_ranks, same_again, algorithm), "losses": losses}


def describe_trajectory(result: TrajectoryResult | LearningResult | FFNCheck) -> dict[str, Any]:
    """Phase 3: how far a run was from the dense one, or from its recipe, at each step and beside what passes."""
    worst = max(map(_share, result.weight_distance, result.weight_limit))
    info = {**asdict(result), "worst_weight_share": worst, "steps": len(result.losses)}
    if isinstance(result, LearningResult) and result.flip_rate:
        info["mean_flip_rate"] = sum(result.flip_rate) / len(result.flip_rate)
    return info


def describe_drift(result: DriftResult) -> dict[str, Any]:
    """How far a layer that is fed back wandered from float64, at each step and beside the dense product."""
    return {**asdict(result), "worst_drift": max(result.ratio, key=or_inf), "steps": len(result.ratio)}


def _share(distance: float, limit: float) -> float:
    return distance / limit if distance else 0.0


def describe_training(case: Case, settings: Settings, per_rank: list[TrainingResult]) -> dict[str, Any]:
    """Phase 3: the parts of a step, and the memory of all that is trained; of the slowest and the fullest rank."""
    info = describe_timing(case, settings, per_rank, products=3)
    for name in ("parameter_bytes", "gradient_bytes", "state_bytes", "training_bytes"):
        info[name] = max(getattr(result, name) for result in per_rank)
    if "alone" in info:
        both = info["alone"]["forward_and_backward"]["p50_ms"]
        info["backward_p50_ms"] = both - info["alone"]["forward"]["p50_ms"]
        info["update_p50_ms"] = info["p50_ms"] - both
    return info


def describe_network(case: NetworkCase, settings: Settings, per_rank: Sequence[NetworkResult]) -> dict[str, Any]:
    """Phase 4: a pass of the slowest rank, what of it its linear layers take alone, and what its outputs are like."""
    first = per_rank[0]
    info: dict[str, Any] = {
        "network": case.workload,
        **_how(settings),
        "warmup_rounds": settings.warmup,
        "weight_bytes": max(result.weight_bytes for result in per_rank),
        "steady_peak_bytes": max(result.steady_bytes for result in per_rank),
        "algorithm": first.algorithm,
        "replaced": first.replaced,
        "left": first.left,
        "likeness": first.likeness,
        "not_compiled": first.not_compiled,
    }
    samples = timing.slowest([result.samples for result in per_rank])
    if not samples:
        return info
    info |= _percentiles("", samples) | {"stages": {}, "communication_share": 0.0}
    info["alone"] = {name: _percentiles("", times) for name, times in _slowest_by_name(per_rank, "alone").items()}
    info["dense_equivalent_tflops"] = first.flops / timing.percentile(samples, 50) / 1e12
    if first.eager_samples:
        eager = timing.slowest([result.eager_samples for result in per_rank])
        info |= _percentiles("cuda_events_", eager)
        info["launch_overhead_ms"] = info["cuda_events_p50_ms"] - info["p50_ms"]
    return info


def describe_kernel(kernel: KernelTime) -> dict[str, Any]:
    """One kernel of a profiled pass."""
    info = asdict(kernel)
    return info | {"ms": info.pop("seconds") * 1e3}


def describe_verdict(
    claim: Claim, rival: Case, rivals: dict[str, float], blocks: Pairs, algorithm: str, settings: Settings
) -> dict[str, Any]:
    """A hypothesis at one point: the ratio with its interval, what follows, and all that they rest on.

    Args:
        rivals: medians in ms, by label, of those among which the rival was found.
        blocks: seconds of the slowest rank, of each pass that the claim is about.
    """
    ratio = ratio_of_pairs(blocks)
    return {
        "hypothesis": claim.name,
        "statement": claim.hypothesis.statement,
        "rival": rival.label,
        "rival_method": rival.method,
        "rival_role": str(method_of(rival.method)[0].role),
        "rival_span": str(method_of(rival.method)[0].span),
        "rival_promise": str(method_of(rival.method)[0].promised(rival.picks)),
        "rivals": rivals,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "margin": MARGIN,
        "verdict": ratio.verdict(),
        "blocks": blocks,
        "algorithm": algorithm,
        **_how(settings),
    }


def describe_timing(
    case: Case, settings: Settings, per_rank: Sequence[TimingResult], products: int = 1
) -> dict[str, Any]:
    """Phases 1 and 2: the slowest rank's times, what they amount to, and the memory of the fullest rank.

    Args:
        products: matrix products of B·N·K that a dense layer would need for what was timed.
    """
    info: dict[str, Any] = {
        **_how(settings),
        "warmup_rounds": settings.warmup,
        "weight_bytes": max(result.weight_bytes for result in per_rank),
        "estimated_weight_bytes": max(result.estimated_weight_bytes for result in per_rank),
        "building_peak_bytes": max(result.building_bytes for result in per_rank),
        "steady_peak_bytes": max(result.steady_bytes for result in per_rank),
        "layout_copied_bytes": max(result.copied_bytes for result in per_rank),
        "algorithm": " | ".join(dict.fromkeys(result.algorithm for result in per_rank)),
    }
    samples = timing.slowest([result.samples for result in per_rank])
    if not samples:
        return info
    p50 = timing.percentile(samples, 50)
    info |= _percentiles("", samples)
    by_build = [timing.slowest(list(build)) for build in zip(*(result.builds for result in per_rank), strict=True)]
    info["builds_p50_ms"] = [timing.percentile(build, 50) * 1e3 for build in by_build]
    info["tokens_per_s"] = case.B / p50
    info["dense_equivalent_tflops"] = products * 2 * case.B * case.N * case.K / p50 / 1e12
    info["weight_gb_per_s"] = info["weight_bytes"] / p50 / 1e9
    info["stages"] = {name: _percentiles("", times) for name, times in _slowest_by_name(per_rank, "stages").items()}
    total = sum(stage["p50_ms"] for stage in info["stages"].values())
    info["communication_share"] = info["stages"].get("reduce", {"p50_ms": 0.0})["p50_ms"] / total if total else 0.0
    info["alone"] = {name: _percentiles("", times) for name, times in _slowest_by_name(per_rank, "alone").items()}
    if "forward" in info["alone"]:
        info["backward_p50_ms"] = info["p50_ms"] - info["alone"]["forward"]["p50_ms"]
    if per_rank[0].eager_samples:
        eager = timing.slowest([result.eager_samples for result in per_rank])
        info |= _percentiles("cuda_events_", eager)
        info["launch_overhead_ms"] = info["cuda_events_p50_ms"] - info["p50_ms"]
    return info


def _how(settings: Settings) -> dict[str, Any]:
    """In what mode it was timed, and how the cache was emptied before each round. Runs that say nothing but
    ``l2_flushed`` zeroed a buffer."""
    return {"timing": settings.timing, "l2_flushed": settings.flush, "flush": "clean" if settings.flush else "none"}


def _percentiles(prefix: str, samples: list[float]) -> dict[str, float]:
    return {f"{prefix}p{percent}_ms": timing.percentile(samples, percent) * 1e3 for percent in (50, 95)}


def _slowest_by_name(per_rank: Sequence[TimingResult | NetworkResult], field: str) -> dict[str, list[float]]:
    names = getattr(per_rank[0], field)
    return {name: timing.slowest([getattr(result, field)[name] for result in per_rank]) for name in names}
