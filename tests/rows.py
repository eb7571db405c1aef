"""Results as they are saved, for tests of what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockshock.report.run_tables import run_tables
from blockshock.report.tables import Table
from blockshock.saved.results import Run
from blockshock.saved.settle import settled

Info = dict[str, Any]


def _point(label: str, N: int, B: int) -> Info:
    """A label is the method, its kernel and its mask, as far as it picks them, and its storage."""
    method, kernel, mask, storage = (label.split() + [""] * 3)[:4]
    picks = {
        "label": label,
        "method": method,
        "kernel": kernel or None,
        "mask": mask or None,
        "storage": storage or None,
        "picks": {axis: spec for axis, spec in (("kernel", kernel), ("mask", mask), ("storage", storage)) if spec},
    }
    where = {"device": "cuda", "ranks": 2, "seed": 0}
    return {"workload": "gaussian", "N": N, "K": N, "B": B, "dtype": "bf16", **where, **picks}


def timed(label: str, N: int, B: int, p50_ms: float, **more: object) -> Info:
    """A forward pass, or with phase=3 a training step."""
    numbers = {
        "timing": "cuda_graph",
        "p50_ms": p50_ms,
        "p95_ms": p50_ms,
        "dense_equivalent_tflops": 1.0,
        "communication_share": 0.1,
    }
    memory = {"weight_bytes": 3 << 20, "estimated_weight_bytes": 2 << 20, "steady_peak_bytes": 5 << 20}
    shares = {"matmul": 0.6, "layout": 0.1, "reduce": 0.3}
    stages = {name: {"p50_ms": share * p50_ms} for name, share in shares.items()}
    return _point(label, N, B) | {"phase": 1} | numbers | memory | {"stages": stages} | more


def stepped(label: str, N: int, B: int, p50_ms: float, **more: object) -> Info:
    """A training step."""
    parts = {"update_p50_ms": 0.1, "backward_p50_ms": 0.2, "tokens_per_s": 1e3, "training_bytes": 1 << 20}
    alone = {"alone": {"forward": {"p50_ms": 0.1}}}
    return timed(label, N, B, p50_ms, phase=3, optimizer="sgd", **parts, **alone) | more


def checked(label: str, N: int = 64, B: int = 4, **more: object) -> Info:
    """A result of phase 0 that is right."""
    relative = {"relative_error": 1e-3 * float(more.get("error_ratio", 1.0)), "dense_relative_error": 1e-3}  # type: ignore[arg-type]
    errors = {**relative, "error_ratio": 1.0, "max_error": 1e-2, "mean_error": 1e-3, "of_bound": 0.5}
    return _point(label, N, B) | {"phase": 0} | errors | {"same_on_ranks": True, "same_again": True} | more


def verdict(label: str, N: int = 64, B: int = 4, ratio: float = 0.9, **more: object) -> Info:
    """A verdict on H1, 2 % to both sides of its ratio."""
    claim = {"hypothesis": "H1", "statement": "it is faster", "rival": "dense_tp_row", "margin": 0.01}
    found = {"ratio": ratio, "ratio_low": 0.98 * ratio, "ratio_high": 1.02 * ratio, "verdict": "faster"}
    found |= {"l2_flushed": True, "flush": "clean"}
    return _point(label, N, B) | {"phase": 1} | claim | found | more


def networked(label: str, p50_ms: float, linears_ms: float, likeness: Info | None = None, **more: object) -> Info:
    """A whole network with a row in it."""
    about = {"network": "minilm", "where": "blocks", "workload": "minilm", "replaced": 36, "likeness": likeness or {}}
    alone = {"linears": {"p50_ms": linears_ms}}
    return timed(label, 64, 8, p50_ms, phase=4, stages={}, alone=alone, left={}, not_compiled=None, **about) | more


def gained(label: str, whole: float, layers: float, likeness: Info | None = None, **more: object) -> Info:
    """A verdict on a network: time ÷ the dense network's, of a pass and of its layers alone."""
    pairs = {
        name: {"first": [[ratio], [ratio]], "second": [[1.0], [1.0]], "pilot": 2}
        for name, ratio in (("network", whole), ("linears", layers))
    }
    ratio = whole * (1 + (max(1 / layers, 1) - 1) / 2)
    about = {"hypothesis": "H9", "statement": "it gains half", "rival": "dense_single", "phase": 4, "blocks": pairs}
    place = {"network": "minilm", "where": "blocks", "workload": "minilm", "likeness": likeness or {}}
    return verdict(label, 64, 8, ratio, **{"ratio_low": ratio, "ratio_high": ratio}, **about, **place) | more


def learned(recipe: str, bits: list[float], step_ms: float, **more: object) -> Info:
    """What a recipe learned in 100 steps, of as many seeds as last bits; seed by seed a step takes 1 % longer."""
    times = [step_ms * (1 + seed / 100) for seed in range(len(bits))]
    curves = {
        "curve_steps": [50, 100],
        "curve_bits": [[(8.0 + last) / 2, last] for last in bits],
        "curve_seconds": [[ms / 20, ms / 10] for ms in times],
        "curve_flip_rate": [[0.2, 0.1] for _ in bits],
    }
    about = {
        "unit": "byte",
        "data": "some text",
        "steps": 100,
        "bits_margin": 0.02,
        "timing": "eager",
    }
    found = {"begin_bits": 8.0, "last_bits": sum(bits) / len(bits), "step_ms": times, "status": "right"}
    row = {"label": f"recipe {recipe}", "method": "recipe", "recipe": recipe, "picks": {"recipe": recipe}}
    kind = {"phase": 5, "kind": "learning", "workload": "text", "role": "subject", "promise": "learns", "span": "one"}
    point = _point("recipe", 2048, 32768) | {"K": 512, "ranks": 1}
    return point | row | kind | about | curves | found | {"mean_flip_rate": 0.15, "replaced": 16} | more


def limited(products: float, **more: object) -> Info:
    """What a row says of its limits; the products' share, their limit being 0.5 ms."""
    parts = {
        "products": {"limit_ms": 0.5, "p50_ms": 0.5 / products, "of_limit": products, "bound_by": "compute"},
        "communication": {"limit_ms": 0.1, "p50_ms": 0.2, "of_limit": 0.5, "bound_by": "communication"},
    }
    return {"limit_ms": 0.6, "of_limit": 0.6, "bound_by": "compute", "limits": parts} | more


def run_of(infos: list[Info], **machine: object) -> Run:
    """A run of these results, as it is after it was read."""
    return Run(Path("run.json"), "", machine, settled([_record(*numbered) for numbered in enumerate(infos)]), {})


def tables(infos: list[Info], **machine: object) -> dict[str, Table]:
    """The tables of such a run, by their titles up to a colon."""
    return {table.title.partition(":")[0]: table for table in run_tables(run_of(infos, **machine))}


def saved(infos: list[Info], **machine: object) -> dict[str, Any]:
    """A run of these results, as pytest-benchmark saves it."""
    benchmarks = [_record(*numbered) for numbered in enumerate(infos)]
    benchmarks = [bench | {"stats": {"data": bench["samples"] or [1e-3] * 4}} for bench in benchmarks]
    return {"benchmarks": benchmarks, "machine_info": {"blockshock": machine}, "datetime": "2026-01-01T00:00:00"}


def _record(number: int, info: Info) -> dict[str, Any]:
    group = f"{info.get('hypothesis', 'phase')} {info.get('phase')} N={info['N']} B={info['B']}"
    return {"name": f"test[{number}]", "group": group, "extra_info": info, "samples": samples_of(info)}


def samples_of(info: Info) -> list[float]:
    """Seconds of which its times are the medians, where it has any: a round of each build, or one in all."""
    times = info.get("builds_p50_ms") or [info["p50_ms"]] if "p50_ms" in info else []
    return [ms / 1e3 for ms in times]
