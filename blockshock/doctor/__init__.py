"""What can this machine run? ``python -m blockshock doctor`` looks, and says what to do about the rest.

A check takes its name and returns a Finding; if it raises, what it looked at is broken. What may not be importable is
imported by the check that would say so.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import importlib
import platform
import shutil
import tempfile
import warnings
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

from blockshock.doctor.extras import EXTRAS, LAYERS, installed, numbers
from blockshock.doctor.finding import Finding, Look, State, look_into
from blockshock.doctor.on_ranks import check_internals, check_kernels, check_ranks

STYLES = {"ok": "green", "missing": "bold red", "broken": "bold red", "n.a.": "dim"}
# torch, which the layers need too, has a line of its own. The main job prints its comparison, and writes no report.
PACKAGES = {"packages": (*LAYERS[1:], *EXTRAS["suite"]), "for report --to": EXTRAS["report"]}
CUDA_BUILD = "install a CUDA build of torch: pytorch.org/get-started"
RANKS = {  # device: name of the check, what to do if its ranks do not start
    "cuda": ("NCCL ranks", "NCCL_DEBUG=INFO shows why; containers need --ipc=host"),
    "cpu": ("gloo ranks", "unset GLOO_SOCKET_IFNAME, or set it to a name that `ip link` lists"),
}
WIDTH = 100


def main() -> int:
    """Examine this machine and print what was found; return 0 if the main job would run, else 1."""
    try:
        from rich import box, console, table, text
    except Exception as error:
        print("The main job would not run, and what it shows needs rich:", check_packages("packages").remedy or error)
        return 1
    findings: list[Finding] = []
    screen = console.Console(markup=False, emoji=False, highlight=False)
    with warnings.catch_warnings(), screen.status("Looking ...") as status:
        warnings.simplefilter("ignore")
        job = examine(partial(look_into, findings, lambda name: status.update(f"Looking at {name} ...")))
    runs, ending = conclude(findings, *job)
    rows = table.Table("check", "state", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows.add_column("found", overflow="fold")
    rows.add_column("what to do", overflow="fold", max_width=26)
    for one in findings:
        rows.add_row(one.name, text.Text(one.state, STYLES[one.state]), one.found, one.remedy)
    screen.width = min(screen.width, WIDTH) if screen.is_terminal else WIDTH
    screen.print(rows, text.Text(ending, "bold"))
    return 0 if runs else 1


def examine(look: Look) -> tuple[str, int]:
    """Look at everything; return the device that the main job would choose, and its ranks."""
    look("Python", "install Python 3.11 or newer", check_version, platform.python_version(), "3.11")
    for packages in PACKAGES:
        look(packages, "", check_packages)
    look("results folder", "make it writable, or run elsewhere", check_folder, Path("benchmark_results"))
    if look("torch", 'python -m pip install --force-reinstall "torch>=2.11"', check_torch).state != "ok":
        look("GPUs and ranks", "", lambda name: Finding(name, "n.a.", "not checked: they need torch"))
        return "cpu", 2
    import torch

    gpus = torch.cuda.device_count()
    look("cache folder", "set XDG_CACHE_HOME to a writable folder", check_cache)
    look("driver", "", check_fact, "driver", "no answer from nvidia-smi", "run it to see why; reinstall the driver")
    look("GPUs", "unset CUDA_VISIBLE_DEVICES, or install a driver for this CUDA", check_gpus, gpus)
    look("GPU link", "", check_fact, "interconnect", "needs 2 GPUs" if gpus < 2 else "nvidia-smi does not say")
    for library in ("CUDA", "NCCL", "cuSPARSELt"):
        look(library, CUDA_BUILD, check_fact, library.lower(), "torch was built without it", CUDA_BUILD)
    device = "cuda" if gpus else "cpu"
    look(f"kernels on {device}", RANKS[device][1], check_kernels, device, gpus, look)
    for where, (name, remedy) in RANKS.items():
        look(name, remedy, check_ranks, where, gpus)
    look("torch's private parts", "", check_internals, device, look)
    return device, 1 if gpus == 1 else 2


def conclude(findings: list[Finding], device: str, ranks: int = 2) -> tuple[bool, str]:
    """Whether the main job would run on its device, and the sentence that says so."""
    needed = ("Python", "packages", "results folder", "torch", f"kernels on {device}", RANKS[device][0])
    states = {finding.name: finding.state for finding in findings if finding.name in needed}
    if all(states.get(name) == "ok" for name in needed):
        alone = "1 CUDA rank (NCCL), both halves on one GPU against the dense layer there"
        several = f"{ranks} {'CUDA ranks (NCCL)' if device == 'cuda' else 'CPU ranks (gloo)'}"
        return True, f"The main job runs here: {alone if (device, ranks) == ('cuda', 1) else several}."
    bad = sorted({"missing", "broken"} & set(states.values()))
    return False, f"The main job would not run: fix the lines marked {' or '.join(bad)}."


def check_version(name: str, version: str, least: str) -> Finding:
    if numbers(version) < numbers(least):
        raise RuntimeError(f"{version} is too old: it takes {least}")
    return Finding(name, "ok", version)


def check_torch(name: str) -> Finding:
    import torch

    return check_version(name, torch.__version__, "2.11")


def check_packages(name: str) -> Finding:
    fine, wrong, install = list[str](), list[str](), "python -m pip install"
    for requirement in PACKAGES[name]:
        package, least = requirement.split(">=")
        there = installed(package) or "missing"
        lacks = numbers(there) < numbers(least)
        (wrong if lacks else fine).append(f"{package} {there}")
        install += f' "{requirement}"' if lacks else ""
    return Finding(name, "missing", ", ".join(wrong), install) if wrong else Finding(name, "ok", ", ".join(fine))


def check_folder(name: str, folder: Path) -> Finding:
    """Make a file that vanishes at once, in the folder or in what it would be made in."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with tempfile.TemporaryFile(dir=there):
        return Finding(name, "ok", f"{folder} {'is writable' if there == folder else 'can be made'}")


def check_cache(name: str) -> Finding:
    from blockshock.machine import cache_folder

    return check_folder(name, cache_folder())


@cache
def facts() -> dict[str, Any]:
    return dict(importlib.import_module("blockshock.machine.environment").describe())


def check_fact(name: str, key: str, absent: str, remedy: str = "") -> Finding:
    """One of ``environment.describe()``; if there is none, it is missing where an NVIDIA driver seems to be."""
    if value := facts()[key]:
        return Finding(name, "ok", str(value))
    wanted = remedy and shutil.which("nvidia-smi")
    return Finding(name, "missing", absent, remedy) if wanted else Finding(name, "n.a.", absent)


def check_gpus(name: str, gpus: int) -> Finding:
    """``gpus`` are those that torch can use, nvidia-smi shows those that are there."""
    there = facts()["gpus"]
    found = ", ".join(f"{count} x {gpu}" for gpu, count in Counter(there).items()) or f"{gpus or 'none'}"
    if gpus < len(there):
        found = f"torch can use {gpus} of {found}"
    if gpus == 0 and there and facts()["cuda"]:
        raise RuntimeError(found)
    return Finding(name, "ok" if gpus else "n.a.", found + ("" if gpus else ": the main job runs on CPU ranks"))
