"""Saved runs as they lie on disk: which there are, what is in them, and why a file is none. Never imports torch."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORAGE = Path("benchmark_results")

NEEDED = {
    "p50_ms": ("p95_ms", "stages", "dense_equivalent_tflops", "communication_share", "weight_bytes", "timing"),
    "error_ratio": ("relative_error", "max_error", "of_bound", "same_on_ranks", "same_again"),
    "update_p50_ms": ("alone", "backward_p50_ms", "tokens_per_s", "training_bytes"),
    "worst_weight_share": ("steps",),
    "worst_drift": ("steps",),
    "verdict": ("statement", "ratio", "ratio_low", "ratio_high", "margin"),
}
"""Of each number that makes a row one of its kind, what else the tables show of that kind."""
POINT = ("label", "workload", "N", "K", "B", "dtype", "device", "ranks")


class NotARun(ValueError):
    """A file that is no saved run of this suite; the message says why."""


@dataclass(frozen=True)
class Run:
    """One saved run.

    Attributes:
        path: its file.
        taken: when, as pytest-benchmark wrote it.
        machine: what ``environment.describe`` found; empty in runs that do not say.
        records: ``{"name", "group", "extra_info"}`` of each benchmark that the tables can show.
        left_out: how many they cannot, by what is missing.
    """

    path: Path
    taken: str
    machine: dict[str, Any]
    records: list[dict[str, Any]]
    left_out: dict[str, int]


def latest_run(storage: Path = STORAGE) -> Path:
    """The saved run that was written last.

    Raises:
        NotARun: there is none.
    """
    if found := newest(storage):
        return found
    raise NotARun(f"no saved run in {storage}: make one with `tox run -e bench`, or name a file")


def newest(storage: Path) -> Path | None:
    """The saved run that was written last, if there is any."""
    found = [path for pattern in ("*/*.json", "*/*.json.gz") for path in storage.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def read_run(path: Path) -> Run:
    """A saved run, plain or gzipped.

    Raises:
        NotARun: the file cannot be read, is damaged, or holds no benchmark of this suite.
    """
    try:
        raw = path.read_bytes()
        saved = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        benchmarks = saved["benchmarks"]
        infos = [(bench["name"], bench["group"], bench["extra_info"]) for bench in benchmarks]
        ours = [(name, group, info) for name, group, info in infos if "phase" in info]
    except OSError as error:
        raise NotARun(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise NotARun(f"{path}: damaged, or no JSON ({error})") from None
    except (KeyError, TypeError):
        raise NotARun(f"{path}: JSON, but no run that pytest-benchmark saved") from None
    if not ours:
        raise NotARun(f"{path}: a run of pytest-benchmark, but none of Block-Shock's tests is in it")
    records, left_out = [], dict[str, int]()
    for name, group, info in ours:
        if missing := _missing(info):
            left_out[missing] = left_out.get(missing, 0) + 1
        else:
            records.append({"name": name, "group": group, "extra_info": info})
    machine = saved.get("machine_info", {}).get("blockshock", {})
    return Run(path, saved.get("datetime", ""), machine, records, left_out)


def _missing(info: dict[str, Any]) -> str | None:
    """The first number that a table would look for in vain, in a run of an older version say."""
    needed = [*POINT, *(name for kind, names in NEEDED.items() if kind in info for name in names)]
    return next((name for name in needed if name not in info), None)
