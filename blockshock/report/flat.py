"""Results as flat rows, for a program: the same columns of every run, whatever its age; nested names have dots."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from typing import Any

from blockshock.report.points import Ratios
from blockshock.report.remarks import left_out
from blockshock.report.tables import Info, spread
from blockshock.saved import MEASURED, PHASES, STAGES, Run, faults, section_of, was_checked

Row = dict[str, Any]
TIMED = ("p50_ms", "of_limit", "limit_ms")
ALONE = ("partial", "combine", "forward", "forward_and_backward", "pack", "copy")
QUALITIES = ("quality", "quality_of_half", "loses")
"""What a check found of W′ and of the first half alone, and what a row loses by the checks of its run."""
COLUMNS = (
    *("run", "test", "group", "section", "phase", "label", "method", "picks"),
    *(f"picks.{axis}" for axis in ("kernel", "mask", "pruner", "storage", "combine", "format")),
    *("picks.block_kernel", "picks.block_mask", "picks.recipe"),
    *("role", "span", "promise", "workload", "N", "K", "B", "dtype", "optimizer", "seed", "device", "ranks"),
    *("status", "wrong", "algorithm", "timing", "flush"),
    *("p50_ms", "p95_ms", "builds ±", "÷ best dense", "best dense", "paired"),
    *("limit_ms", "of_limit", "bound_by"),
    *("tokens_per_s", "dense_equivalent_tflops", "weight_gb_per_s", "communication_share"),
    *("cuda_events_p50_ms", "launch_overhead_ms", "backward_p50_ms", "update_p50_ms"),
    *(f"stages.{stage}.p50_ms" for stages in STAGES.values() for stage in stages),
    *(f"alone.{what}.p50_ms" for what in ALONE),
    *("work.flops", "work.unit", "work.memory_bytes"),
    *(f"limits.{part}.{name}" for part in STAGES for name in TIMED),
    *("weight_bytes", "estimated_weight_bytes", "steady_peak_bytes", "building_peak_bytes", "layout_copied_bytes"),
    *("parameter_bytes", "gradient_bytes", "state_bytes", "training_bytes"),
    *("error_ratio", "error_ratio_limit", "relative_error", "dense_relative_error", "max_error", "mean_error"),
    *("of_bound", "same_on_ranks", "same_again", "worst_weight_share", "worst_drift", "steps"),
    *("mask_every", "mean_flip_rate"),
    *(f"{what}.{name}" for what in QUALITIES for name in ("output_error", "kept_magnitude", "kept_energy")),
    *("network", "where", "replaced", "alone.linears.p50_ms", "alone.compiled.p50_ms"),
    *("likeness.cosine", "likeness.least_cosine", "likeness.spearman"),
    *("likeness.bits_per_byte", "likeness.added_bits_per_byte"),
    *("last_bits", "begin_bits", "unit", "data", "bits_margin", "parameters", "schedule"),
    *("hypothesis", "statement", "rival", "ratio", "ratio_low", "ratio_high", "margin", "verdict"),
)
"""Of every run. What a row has none of is None; the picks of an axis that is not here are in ``picks``."""


def flat(info: Info, prefix: str = "") -> Row:
    """The values of an extra_info, lists included, by name: ``stages.matmul.p50_ms``."""
    found: Row = {}
    for name, value in info.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def rows(runs: list[Run]) -> list[Row]:
    """Each result as a row of COLUMNS; lists are left out."""
    return [row for run in runs for row in _rows(run)]


def finite(rows: list[Row]) -> list[Row]:
    """The same with None for what is no number, which JSON has no word for."""
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in rows
    ]


def _rows(run: Run) -> list[Row]:
    ratios, found = Ratios(run.infos), []
    for record in run.records:
        info = record["extra_info"]
        known = {name: value for name, value in flat(info).items() if not isinstance(value, list)}
        told = {"run": str(run.path), "test": record["name"], "group": record["group"], "section": section_of(info)}
        picks = " ".join(f"{axis}={spec}" for axis, spec in info["picks"].items())
        known |= told | {"picks": picks, "status": _status(info)} | _beside(info, ratios)
        found.append({name: known.get(name) for name in COLUMNS})
    return found


def _status(info: Info) -> str:
    """``wrong`` of what any check of the run discredits, ``right`` of a check that passed, else ``measured``."""
    if info.get("wrong") or faults(info):
        return "wrong"
    return "right" if was_checked(info) else MEASURED


def _beside(info: Info, ratios: Ratios) -> Row:
    """The number of what was timed: over the best dense alternative, as everywhere."""
    section = section_of(info) or ""
    if section not in PHASES.values():
        return {}
    rival, best = ratios.best(section, info, ()) or (None, None)
    paired = ratios.paired(section, info)
    return {"builds ±": spread(info), "÷ best dense": best, "best dense": rival, "paired": paired}


def print_rows(runs: list[Run], form: str) -> None:
    """Every result of every run as a row, for a program to read: in UTF-8, whatever a terminal here would take, and
    with a path's bytes as they are. Says beside them what cannot be shown."""
    for run in runs:
        for why in left_out(run):
            print(f"{run.path}: {why}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    found = rows(runs)
    if form == "json":
        json.dump(finite(found), sys.stdout, indent=1, allow_nan=False)
        print()
        return
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(found)
