"""What can this machine run? ``python -m blockshock doctor`` looks, and says what to do about the rest.

A check takes its name and returns a Finding; if it raises, what it looked at is broken. Kernels and collectives, which
may crash or hang, run in ranks. What may not be importable is imported by the check that would say so.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import importlib
import platform
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from blockshock.extras import EXTRAS, LAYERS, installed, numbers

State = Literal["ok", "missing", "broken", "n.a."]
STYLES = {"ok": "green", "missing": "bold red", "broken": "bold red", "n.a.": "dim"}
# torch, which the layers need too, has a line of its own. The main job prints its comparison, and writes no report.
PACKAGES = {"packages": (*LAYERS[1:], *EXTRAS["suite"]), "for report --to": EXTRAS["report"]}
CUDA_BUILD = "install a CUDA build of torch: pytorch.org/get-started"
RANKS = {  # device: name of the check, what to do if its ranks do not start
    "cuda": ("NCCL ranks", "NCCL_DEBUG=INFO shows why; containers need --ipc=host"),
    "cpu": ("gloo ranks", "unset GLOO_SOCKET_IFNAME, or set it to a name that `ip link` lists"),
}
RANK_SECONDS, WIDTH = 120, 100
Look = Callable[..., "Finding"]  # a check, or look_into bound to its list


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, what was found, and what the user can do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


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


def look_into(
    findings: list[Finding], progress: Callable[[str], None], name: str, remedy: str, check: Look, *args: object
) -> Finding:
    """Add the finding of ``check(name, *args)``. What it raises is one too: missing, of a module, or broken."""
    progress(name)
    try:
        finding = check(name, *args)
    except (Exception, SystemExit) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        found = re.sub(r"^\[.*?\] *", "", first)[:92]  # without a leading [Errno 2] or [enforce fail at FILE:LINE]
        finding = Finding(name, "missing" if isinstance(error, ModuleNotFoundError) else "broken", found, remedy)
    findings.append(finding)
    return finding


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
    from blockshock.kernels import cache_folder

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


def check_kernels(name: str, device: str, gpus: int, look: Look) -> Finding:
    """Look at each kernel, on a rank that is started anew after a crash; one that is sparse has to be right."""
    from blockshock.kernels import KERNELS
    from blockshock.ranks import spawn

    right = []
    with spawn(1, device, RANK_SECONDS) as ranks:

        def check_kernel(*call: str) -> Finding:
            return ranks.run(multiply, *call)[0]

        for kernel in KERNELS.names():
            if gpus and device not in KERNELS.get(kernel).device_types:
                continue  # the turn of the GPU says more
            finding = look(f"kernel {kernel}", "choose other --kernels", check_kernel, kernel, device)
            if finding.state == "ok" and KERNELS.get(kernel).sparse:
                right.append(kernel)
    if not right:
        return Finding(name, "broken", "no sparse kernel multiplies right", "see the line of each kernel")
    return Finding(name, "ok", f"sparse and right: {', '.join(right)}")


def multiply(name: str, kernel: str, device: str) -> Finding:
    """Multiply by both halves of a small W and compare the sum with float64; a rank calls it."""
    import torch

    from blockshock.kernels import build_kernel
    from blockshock.matrices import GeneratedWeights, Piece, pattern_mask
    from blockshock.measure import Accuracy, compare

    source, mask = GeneratedWeights(256, 256, torch.bfloat16, device), pattern_mask("1100", 256, 256, device)
    x_BK, chosen = source.rows(0, 16), build_kernel(kernel)
    if reason := chosen.unavailable(source.device, source.dtype):
        return Finding(name, "n.a.", reason)
    halves = [Piece(source, slice(0, 256), one) for one in (mask, mask.complement())]
    kernels = [chosen.resolve(half, len(x_BK), False, lambda seconds: seconds) for half in halves]
    first, second = (kernel.pack(half)(x_BK) for kernel, half in zip(kernels, halves, strict=True))
    accuracy = Accuracy.of(compare(first + second, x_BK, source, roundings=2, index=0, count=1), roundings=2)
    if failure := accuracy.failure():
        raise ArithmeticError(failure)
    return Finding(name, "ok", f"right on {device}, {accuracy.error_ratio:.2f} x dense's error")


def check_ranks(name: str, device: str, gpus: int) -> Finding:
    from blockshock.ranks import spawn

    if device == "cuda" and not gpus:
        return Finding(name, "n.a.", "needs a GPU")
    size = 1 if device == "cuda" and gpus == 1 else 2
    with spawn(size, device, RANK_SECONDS) as ranks:
        sums = ranks.run(sum_of_numbers, device)
    if sums != [size * (size + 1) // 2] * size:
        raise ArithmeticError(f"an all-reduce of {' and '.join(map(str, range(1, size + 1)))} gives {sums}")
    if size == 1:
        return Finding(name, "ok", "1 rank; what spreads over GPUs, as tensor parallelism does, takes 2")
    return Finding(name, "ok", "2 ranks, all-reduce right")


def check_internals(name: str, device: str, look: Look) -> Finding:
    """Try each, those of a GPU on a rank, for they may crash; one that is not what it was has a line of its own."""
    from blockshock.machine import INTERNALS
    from blockshock.ranks import spawn

    tried, broken = 0, 0
    with spawn(1, device, RANK_SECONDS) if device == "cuda" else nullcontext() as ranks:
        for part, internal in INTERNALS.items():
            try:
                lacks = ranks.run(try_internal, part, device)[0] if ranks else try_internal(part, device)
                tried += not lacks
            except Exception as error:
                broken += 1
                look(part, f"take another torch: {internal.without}", raise_again, error)
    if broken:
        return Finding(name, "broken", f"{broken} of {len(INTERNALS)} are not what they were", "see the line of each")
    return Finding(name, "ok", f"{tried} of {len(INTERNALS)} tried, all do what they did")


def try_internal(part: str, device: str) -> str | None:
    """Try one of torch's private parts; a rank calls it. Why it cannot be tried here, or None."""
    from blockshock.machine import INTERNALS

    internal = INTERNALS[part]
    if internal.device == "cuda" and device != "cuda":
        return "needs a GPU"
    lacks = internal.lacks()
    if not lacks:
        internal.attempt()
    return lacks


def raise_again(name: str, error: Exception) -> Finding:
    raise error


def sum_of_numbers(device: str) -> int:
    """The sum of the ranks' numbers, counted from 1; all ranks call it together."""
    import torch

    number = torch.tensor(torch.distributed.get_rank() + 1, device=device)
    torch.distributed.all_reduce(number)
    return int(number)
