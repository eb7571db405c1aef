"""What the report reads of a saved result: which values must be there, and what they must be for it to show them."""

from __future__ import annotations

from typing import Any

from blockshock.saved.fits import (
    Fits,
    each,
    flag,
    having,
    items,
    number,
    number_or_none,
    positive,
    series_of,
    size,
    text,
    whole,
)
from blockshock.saved.sections import PHASES, section_of

_SERIES = series_of(number)


TWO_PASSES = ({"forward", "training"}, {"network", "linears"})
"""What a verdict can be about at once."""


def _blocks(value: Any) -> bool:
    """Samples of both sides, of what was timed: as many blocks of both, some a pilot, of any number of rounds."""
    block = series_of(series_of(positive))
    return (
        bool(value)
        and each(having(first=block, second=block, pilot=size))(value)
        and all(len(both["first"]) == len(both["second"]) for both in value.values())
        and (len(value) == 1 or set(value) in TWO_PASSES)
    )


LIKENESS = (("cosine", "least_cosine", "spearman"), ("bits_per_byte", "added_bits_per_byte"))
"""What is left of a network's outputs: of an encoder of sentences, and of a language model."""


def _likeness(value: Any) -> bool:
    """All that belongs to one of LIKENESS, or to both; nothing of a network whose weights were drawn."""
    if not isinstance(value, dict):
        return False
    there = [names for names in LIKENESS if value.keys() & {*names}]
    return all(having(**dict.fromkeys(names, number))(value) for names in there) and bool(there or not value)


def _limited(value: Any) -> bool:
    """A part of a pass: its time, and its limit where that could be measured."""
    limits = (value.get(name) for name in ("limit_ms", "of_limit")) if isinstance(value, dict) else ()
    return having(p50_ms=positive)(value) and all(map(number_or_none, limits))


MEDIAN = having(p50_ms=number)
ERRORS = dict.fromkeys(("error_ratio", "relative_error", "dense_relative_error", "max_error", "of_bound"), number)


def _loss(value: Any) -> bool:
    """Errors of the gradient of one loss."""
    return having(**ERRORS)(value) and all(
        number_or_none(value.get(name)) for name in ("error_ratio_limit", "mean_error")
    )


POINT: dict[str, Fits] = {
    "phase": whole,
    **dict.fromkeys(("label", "method", "workload", "dtype", "device"), text),
    **dict.fromkeys(("N", "K", "B", "ranks"), size),
}
KINDS: dict[str, dict[str, Fits]] = {
    "p50_ms": {
        "p50_ms": positive,
        "p95_ms": positive,
        "stages": each(MEDIAN),
        "dense_equivalent_tflops": number,
        "communication_share": number,
        "weight_bytes": number,
        "timing": text,
    },
    "error_ratio": {
        **ERRORS,
        "same_on_ranks": flag,
        "same_again": flag,
    },
    "update_p50_ms": {
        **dict.fromkeys(("update_p50_ms", "backward_p50_ms", "tokens_per_s", "training_bytes"), number),
        "alone": having(forward=MEDIAN),
    },
    "worst_weight_share": {"worst_weight_share": number, "steps": whole},
    "worst_drift": {
        **dict.fromkeys(("relative_error", "max_error", "mean_error", "ratio", "dense_relative_error"), _SERIES),
        "worst_drift": number,
        "steps": whole,
    },
    "network": {"network": text, "where": text, "replaced": whole, "likeness": _likeness},
    "last_bits": {
        **dict.fromkeys(("last_bits", "begin_bits", "bits_margin"), number),
        **dict.fromkeys(("unit", "data"), text),
        "curve_steps": series_of(size),
        **dict.fromkeys(("curve_bits", "curve_seconds"), series_of(_SERIES)),
        "step_ms": series_of(positive),
        "steps": size,
    },
    "verdict": {
        **dict.fromkeys(("statement", "hypothesis", "rival", "verdict"), text),
        **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), positive),
        "margin": number,
    },
}
"""Of each number that makes a row one of its kind, what else the report shows of that kind."""
STATUSES = ("measured", "right", "wrong")
"""Another word would say what nobody here knows: a row that has it is not counted as right."""
OTHERWISE: dict[str, Fits] = {
    **dict.fromkeys(("kernel", "mask", "optimizer", "storage", "bound_by", "clock", "flush"), text),
    **dict.fromkeys(("kind", "point", "network", "where", "not_compiled", "failure"), text),
    "status": lambda value: value in STATUSES,
    **dict.fromkeys(("role", "span", "promise", "rival_role", "rival_span", "rival_promise"), text),
    "picks": each(text),
    **dict.fromkeys(
        ("quality", "quality_of_half"),
        having(**dict.fromkeys(("output_error", "kept_magnitude", "kept_energy"), number)),
    ),
    **dict.fromkeys(("of_limit", "limit_ms", "error_ratio_limit", "mean_error", "cuda_events_p50_ms"), number),
    **dict.fromkeys(("estimated_weight_bytes", "steady_peak_bytes", "building_peak_bytes"), number),
    **dict.fromkeys(("layout_copied_bytes", "parameter_bytes", "gradient_bytes", "state_bytes"), number),
    **dict.fromkeys(("relative_error", "max_error", "ratio", "mean_flip_rate"), number),
    **dict.fromkeys(("seed", "mask_every"), whole),
    "flip_rate": items(number),
    "left": each(text),
    "likeness": _likeness,
    "curve_flip_rate": items(_SERIES),
    **dict.fromkeys(("schedule", "corpus"), text),
    **dict.fromkeys(("compiled_step_ms", "eager_step_ms"), positive),
    "l2_flushed": flag,
    "builds_p50_ms": series_of(positive),
    "blocks": _blocks,
    "rivals": each(number_or_none),
    "losses": lambda value: each(_loss)(value) or items(number)(value),
    **dict.fromkeys((f"{what}_{of}" for what in ("weight", "loss") for of in ("distance", "limit")), items(number)),
    "alone": each(MEDIAN),
    "limits": each(_limited),
    "work": having(flops=number, memory_bytes=number),
    "kernels": items(having(name=text, kind=text, calls=whole, ms=number, share=number)),
    **dict.fromkeys(("traces", "extend", "mask_faults"), items(text)),
    "layers": series_of(
        having(model=text, name=text, count=size, of=size, listed=flag, list=lambda list: list is None or text(list))
    ),
}
"""What a row may have of any kind, or not."""


def unfit(info: dict[str, Any]) -> str | None:
    """The first value that the report would look for in vain, or could not show: of another version, say."""
    must = needed(info)
    for name, fits in must.items():
        if not fits(info.get(name)):
            return name
    # What was judged wrong when it ran is not to go unseen for want of a number.
    if section_of(info) is None and info.get("timing") != "none" and info.get("status") != "wrong":
        return _lost(info)
    for name, fits in OTHERWISE.items():
        if name not in must and info.get(name) is not None and not fits(info[name]):
            return name
    return None


def needed(info: dict[str, Any]) -> dict[str, Fits]:
    """What must be there, of a row of its kinds, by name."""
    kinds = ["verdict"] if "verdict" in info else [kind for kind in KINDS if kind in info]
    if "p50_ms" in kinds and info.get("phase") == 3:  # shown as a training step, whatever it lacks of one
        kinds.append("update_p50_ms")
    if "network" in kinds and info.get("timing") != "none":
        kinds.append("p50_ms")
    return POINT | {name: fits for kind in kinds for name, fits in KINDS[kind].items()}


CHECKS = {1: "p50_ms", 2: "error_ratio", 3: "worst_weight_share", 6: "worst_weight_share"}
"""What a row of each phase has that was not timed."""


def _lost(info: dict[str, Any]) -> str:
    """The number that would make a row one of a section, where it is of none and did not run untimed."""
    phase = info["phase"]
    if "hypothesis" in info:
        return "verdict"
    if phase == 0:
        return "worst_drift" if "ratio" in info else "error_ratio"
    if "curve_steps" in info:
        return "last_bits"
    if "replaced" in info:
        return "network"
    if phase not in PHASES:
        return "phase"
    return "p50_ms" if "timing" in info else CHECKS[phase]


def machine_facts(found: Any) -> dict[str, Any]:
    """Those facts about a machine that can be shown."""
    if not isinstance(found, dict):
        return {}
    named = {"gpus": items(text), "ceilings": _ceilings}
    return {name: value for name, value in found.items() if named.get(name, _fact)(value)}


def _ceilings(found: Any) -> bool:
    """As of ``roofline.Ceilings``: numbers, by name or by dtype; None of what could not be measured, and of collectives
    where there is one rank."""
    if not isinstance(found, dict):
        return False
    single, grouped = ("memory_bytes_per_s", "cache_bytes", "launch_s"), each(number_or_none)
    return all(value is None or (number if name in single else grouped)(value) for name, value in found.items())


def _fact(value: Any) -> bool:
    return text(value) or number_or_none(value)
