"""What a benchmark saves of the limit of its time: of the whole, and of the parts that have a limit of their own."""

from __future__ import annotations

from typing import Any

from blockshock.measure import Ceilings, NoCeiling, Work, demands, known, limit, timing
from blockshock.saved import STAGES


def describe_limits(
    work: dict[str, Work],
    ceilings: Ceilings,
    dtype: str,
    flushed: bool,
    samples: list[float],
    info: dict[str, Any],
) -> dict[str, Any]:
    """``limit_ms``, ``of_limit`` and ``bound_by`` of the whole pass, the same of its parts in ``limits``, and ``work``.

    What a ceiling is missing for is left out: the whole, or a part.

    Args:
        work: of one rank, by part.
        samples: seconds of each round.
        info: the times of stages, where they were measured.
    """

    def share(part: Work, p50_ms: float, launch: bool = False) -> dict[str, Any]:
        try:
            found = demands(part, ceilings, dtype, flushed)
            if launch:
                found["launch"] = known(ceilings.launch_s, "a launch")
        except NoCeiling:
            return {}
        seconds, bound_by = limit(found)
        return {"limit_ms": seconds * 1e3, "of_limit": seconds * 1e3 / p50_ms, "bound_by": bound_by}

    measured = _parts_ms(info)
    limits = {
        part: {"p50_ms": measured[part], **of_part}
        for part, found in work.items()
        if measured.get(part) and (of_part := share(found, measured[part]))
    }
    products = work["products"]
    return share(sum(work.values(), Work()), timing.percentile(samples, 50) * 1e3, launch=True) | {
        "limits": limits,
        "work": {
            "flops": sum(products.flops.values()),
            "unit": max(products.flops, key=lambda unit: products.flops[unit]),
            "memory_bytes": products.memory_bytes(ceilings.cache_bytes, flushed),
        },
    }


def _parts_ms(info: dict[str, Any]) -> dict[str, float]:
    """Medians of the parts of a pass, by their stages; the products of a forward pass by themselves, where possible."""
    stages = {name: times["p50_ms"] for name, times in info.get("stages", {}).items()}
    alone = info.get("alone", {})
    parts = {part: sum(stages.get(name, 0.0) for name in names) for part, names in STAGES.items()}
    if "partial" in alone:
        parts["products"] = alone["partial"]["p50_ms"]
    if "grad_w" in stages:
        del parts["communication"]  # it runs beside grad_W: what its stage measures is the wait that is left
    if "forward" in alone and "grad_x" not in stages:
        del parts["products"]  # torch's own backward, of DTensor, is not told apart into stages
        parts.pop("communication", None)
    return parts
