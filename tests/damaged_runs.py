"""Saved runs of which a few values are gone, or not what they were."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from rows import checked, gained, learned, networked, samples_of, stepped, timed, verdict
from strategies import SPECIAL, names, numbers

from blockshock.saved import schema
from blockshock.saved.results import read_run
from blockshock.saved.sections import section_of

OFFICIAL = Path(__file__).parent.parent / "benchmark_results" / "official" / "0006_2xH200-full"
scalars = st.one_of(st.none(), st.booleans(), numbers, names)
hostile = scalars | st.sampled_from(([], {}, [1.5], [None], {"": 1}, {"p50_ms": "x"}, {"a": {"p50_ms": 1}}, [[]]))
values = hostile | st.sampled_from((0, 0.0, -1, 1, 2, 1e-300, 1e300, *SPECIAL))
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@cache
def some_rows() -> list[str]:
    """One result of each kind, and a rival, of the official run, as JSON; with few samples."""
    kept: dict[Any, dict[str, Any]] = {}
    for record in read_run(OFFICIAL).records:
        info = record["extra_info"]
        if info["method"] in ("block_shock", "dense_tp_row"):
            kept.setdefault((section_of(info), info["phase"], info["method"]), record)
    rows = []
    for record in kept.values():
        info = {key: value[:4] if isinstance(value, list) else value for key, value in record["extra_info"].items()}
        named = {"name": record["name"], "fullname": record["name"], "group": record["group"]}
        rows.append(json.dumps(named | {"extra_info": info, "stats": {"data": record["samples"][:4]}}))
    return rows + [json.dumps({"name": name, "fullname": name, "group": name} | row) for name, row in _newer().items()]


def _newer() -> dict[str, dict[str, Any]]:
    """What official runs do not hold yet."""
    sides = {"first": [[1e-3, 1.1e-3], [1e-3, 9e-4]], "second": [[1e-3, 1e-3], [1.2e-3, 1e-3]], "pilot": 2}
    ours, best = "block_shock gathered 1100", {"dense_single": 1.0, "dense_tp_col": 2.0}
    alone = {"role": "subject", "span": "one", "promise": "own weights", "picks": {"pruner": "magnitude"}}
    quality = {"output_error": 0.3, "kept_magnitude": 0.8, "kept_energy": 0.9}
    likeness = {"cosine": 0.9, "least_cosine": 0.8, "spearman": 0.95}
    bits = {"bits_per_byte": 1.7, "added_bits_per_byte": 0.2}
    infos = {
        "pruned": timed("pruned magnitude", 64, 4, 1.0, **alone),
        "alone": timed("dense_single", 64, 4, 1.0),
        "quality": checked("pruned magnitude", quality=quality, **alone),
        "pays": verdict("pruned magnitude", rival="dense_single", **alone),
        "network": networked("pruned magnitude", 1.0, 0.5, likeness, **alone),
        "language model": networked("pruned magnitude", 1.0, 0.5, bits, network="lm", workload="lm", **alone),
        "gained": gained("pruned magnitude", 0.8, 0.5, likeness, **alone),
        "dense network": networked("dense_single", 2.0, 1.5, likeness, role="rival", span="one"),
        "learns": learned("fst", [2.0, 2.1, 2.0], 1.0),
        "learns densely": learned("dense", [1.9, 2.0, 2.1], 1.1),
        "forward": timed(ours, 64, 4, 1.0, builds_p50_ms=[0.9, 1.1], flush="clean", l2_flushed=True),
        "half": checked(ours, quality_of_half=quality),
        "wrong": checked(ours, error_ratio=1e3, status="wrong"),
        "every": stepped(f"{ours} masked:every=1", 64, 4, 1.0),
        "pair": verdict(ours, blocks={"forward": sides}, rivals=best, rival="dense_single"),
        "change": verdict(ours, blocks={"forward": sides, "training": sides}, optimizer="sgd"),
        "step": verdict(ours, blocks={"training": sides}, rivals=best, optimizer="sgd"),
    }
    return {name: {"extra_info": info, "stats": {"data": samples_of(info)}} for name, info in infos.items()}


def saved(rows: list[dict[str, Any]], machine: Any = None) -> dict[str, Any]:
    facts = {"torch": "2.11", "gpus": ["H200"], "ceilings": {"memory_bytes_per_s": 1e12}}
    told = {"blockshock": facts if machine is None else machine}
    return {"benchmarks": rows, "machine_info": told, "datetime": "2026-01-01T00:00:00"}


@st.composite
def damaged(draw: Any) -> list[dict[str, Any]]:
    """Results of which a few values are gone, or not what they were."""
    rows = [json.loads(row) for row in draw(st.lists(st.sampled_from(some_rows()), min_size=1, max_size=4))]
    for _ in range(draw(st.integers(0, 3))):
        held: Any = draw(st.sampled_from(rows))["extra_info"]
        keys = sorted({*held, *schema.OTHERWISE})
        key = draw(st.sampled_from(keys))
        while isinstance(held.get(key), dict) and held[key] and draw(st.booleans()):
            held = held[key]
            key = draw(st.sampled_from(sorted(held)))
        if draw(st.integers(0, 3)):
            held[key] = draw(values)
        else:
            held.pop(key, None)
    return rows
