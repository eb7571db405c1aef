"""A saved run, and in what its machine and versions several differ."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blockshock.saved.odd import Odd

WHERE = {"GPUs": "gpus", "CPU": "cpu", "torch": "torch"}
"""What all parts of a run share, by what it is called: they were measured on one machine, by one version."""


VERSIONS = {"CUDA": "cuda", "driver": "driver", "NCCL": "nccl", "cuSPARSELt": "cusparselt"}
"""What else decides how fast it is, and is not the same on every machine of a kind."""


class NotARun(ValueError):
    """A file that is no saved run of this suite; the message says why."""


@dataclass(frozen=True)
class Run:
    """One saved run, of one file or of several that a folder holds.

    Attributes:
        path: its file, or its folder.
        taken: when, as pytest-benchmark wrote it.
        machine: what ``environment.describe`` found; empty in runs that do not say. Of parts that of the first, with
            the commits of all, separated by commas.
        records: ``{"name", "group", "extra_info", "samples"}`` of each benchmark that the report can show, as
            ``settle.settled`` gives them; samples in seconds, none in runs that were saved without.
        left_out: how many it cannot show, by what is missing or odd.
        notes: what a reader must know of how its parts go together, a line each.
        until: when the last of its parts was made; empty of a single one.
        odd: of those that it cannot show, values that are there and cannot be.
        called: what to call it beside others, where its file's name is another's too.
    """

    path: Path
    taken: str
    machine: dict[str, Any]
    records: list[dict[str, Any]]
    left_out: dict[str, int]
    notes: list[str] = field(default_factory=list)
    until: str = ""
    odd: list[Odd] = field(default_factory=list)
    called: str = ""

    @property
    def infos(self) -> list[dict[str, Any]]:
        """The extra_info of each benchmark."""
        return [record["extra_info"] for record in self.records]

    @property
    def name(self) -> str:
        """What to call it beside others."""
        return self.called or self.path.name or str(self.path.resolve().name)


def named_apart(runs: list[Run]) -> list[Run]:
    """The runs; of those whose files have one name, each called by as many folders above it too as tell them apart."""
    parts = {run.path: Path(os.path.abspath(run.path)).parts for run in runs}
    depths = dict.fromkeys(parts, 1)
    while True:
        names = {path: "/".join(parts[path][-depth:]) for path, depth in depths.items()}
        counts = Counter(names.values())
        alike = [path for path, name in names.items() if counts[name] > 1 and depths[path] < len(parts[path])]
        if not alike:
            return [replace(run, called=names[run.path]) if depths[run.path] > 1 else run for run in runs]
        for path in alike:
            depths[path] += 1


def differences(runs: list[Run]) -> list[str]:
    """What was not the same when the runs were measured: hardware, versions, commit."""
    told = []
    for name, what in (WHERE | VERSIONS | {"commit": "git_commit"}).items():
        found: dict[str, list[str]] = {}
        for run in runs:
            if what in VERSIONS.values() and run.machine.get(what) is None:
                continue  # a CPU has none, and not every version says
            found.setdefault(shown(run.machine.get(what)), []).append(run.name)
        if len(found) > 1:
            where = [f"{value} ({', '.join(names)})" for value, names in found.items()]
            told.append(f"{name} {' and '.join(where)}")
    return told


def shown(found: Any) -> str:
    """GPUs of one kind are counted."""
    if not isinstance(found, list):
        return str(found)
    return ", ".join(f"{count} × {gpu}" for gpu, count in Counter(found).items()) or "none"
