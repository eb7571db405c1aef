"""What a run is: where it ran, when, at which commits, with which weights, and how much of it is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from blockshock.report.tables import Info
from blockshock.saved import Run, faults, several, was_checked

DRAWN = ("gaussian", "uniform", "activation_like", "transformer_mlp", "attention_like", "vision_conv", "ffn")
"""Workloads whose weights are random numbers: no training made them."""


def ran(run: Run, tried: str = "") -> str:
    """Hardware, dtypes, weights, what sizes were tried, versions, dates, how much there is, and how much of it is
    right."""
    infos, machine = run.infos, run.machine
    torch, commits = (machine.get(name) for name in ("torch", "git_commit"))
    versions = [f"torch {torch}"] if torch else []
    if commits:  # of parts several
        versions.append(f"commit{'s' if ', ' in commits else ''} {commits}")
    dtypes = list(dict.fromkeys(info["dtype"] for info in important(infos)))
    dates = " to ".join(dict.fromkeys(filter(None, (run.taken[:10], run.until[:10]))))
    where = [hardware(run), *dtypes, *_captured(infos), _weights(infos), tried]
    found = [*where, *(versions or ["versions unknown"]), dates]
    checked = [info for info in infos if was_checked(info)]
    wrong = sum(bool(faults(info)) for info in checked)
    right = f"{len(checked)} checked: {f'{wrong} WRONG' if wrong else 'all right'}"
    told = ", ".join(filter(None, found))
    count = f"{several(len(infos), 'result')}, {right if checked else 'none checked'}"
    return " · ".join([told, count, *_against_itself(infos)])


def _captured(infos: list[Info]) -> Iterator[str]:
    """That times are of graphs, which leave out what launching costs."""
    if any(info.get("timing") == "cuda_graph" for info in infos):
        yield "CUDA graphs"


def workloads(infos: list[Info]) -> list[str]:
    """Those of what was timed, or of all where nothing was."""
    return list(dict.fromkeys(info["workload"] for info in important(infos)))


def _weights(infos: list[Info]) -> str:
    """The workloads, and which of them have weights that no training made."""
    names = workloads(infos)
    drawn = [name for name in names if name.partition(":")[0] in DRAWN]
    others = [name for name in names if name not in drawn]
    kinds = [f"{' and '.join(others)} W"] if others else []
    return " and ".join([*kinds, *([f"random W ({', '.join(drawn)})"] if drawn else [])])


def hardware(run: Run) -> str:
    """What it ran on: GPUs by name and number, or the CPU."""
    first, ranks = run.infos[0], max(info["ranks"] for info in run.infos)  # some of them run on one alone
    if first["device"] == "cuda" and (gpus := _gpus(run)):
        on = ", ".join(f"{count} × {gpu}" for gpu, count in gpus.items())
        shown = on if gpus.total() == ranks else f"{several(ranks, 'rank')} on {on}"
    else:
        shown = f"{several(ranks, first['device'].upper() + ' rank')} on {hardware_kind(run)}"
    machines = run.machine.get("machines") or 1
    return f"{machines} machines, the first with {shown}" if machines > 1 else shown


def hardware_kind(run: Run) -> str:
    """The GPUs by name, each kind once, or the CPU: what runs on several numbers of ranks have in common."""
    if run.infos[0]["device"] == "cuda":
        return ", ".join(_gpus(run)) or "unnamed hardware"
    return str(run.machine.get("cpu") or "unnamed hardware")


def _gpus(run: Run) -> Counter[str]:
    return Counter(gpu.partition(",")[0] for gpu in run.machine.get("gpus", []))


def important(infos: list[Info]) -> list[Info]:
    """What is timed, or all where nothing is: checks are of more dtypes."""
    return [info for info in infos if "p50_ms" in info or "verdict" in info] or infos


def _against_itself(infos: list[Info]) -> Iterator[str]:
    """How often a row was told from itself, where a hypothesis compared it with itself."""
    same = [info["verdict"] for info in infos if "verdict" in info and info["rival"] == info["label"]]
    if same:
        yield f"A against itself: {sum(one in ('faster', 'slower') for one in same)} of {len(same)} told apart"
