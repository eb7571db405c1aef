"""What hardware and software this is, without touching a GPU: no CUDA context is made in the calling process."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from blockshock.ranks import Place


def describe() -> dict[str, Any]:
    """Machine info for a saved run: GPUs, driver, libraries, link, CPU and commit. Absent things are None.

    Of several machines, all but their number is of the first.
    """
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": _nccl_version(),
        "cusparselt": torch.backends.cusparselt.version(),
        "gpus": gpus(),
        "driver": next(iter(_query("driver_version")), None),
        "interconnect": interconnect(),
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "machines": place.nodes if (place := Place.here()) else 1,
    }


def gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU that nvidia-smi shows."""
    return _query("name,memory.total")


def first_gpus(count: int) -> list[str]:
    """UUIDs of the GPUs that CUDA numbers first in this process, as many as there are.

    Of all, where GPUs of several kinds are numbered by their speed: CUDA alone knows how.
    """
    found = [line.rpartition(", ") for line in _query("name,uuid")]
    uuids = [uuid for _, _, uuid in found]
    if len({name for name, _, _ in found}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return uuids
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (uuids if visible is None else _visible(visible, uuids))[:count]


def _visible(chosen: str, uuids: list[str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES chooses: by numbers, by the beginnings of UUIDs, up to the first that there is not."""
    found = []
    for name in map(str.strip, chosen.split(",")):
        fits = (
            uuids[int(name) : int(name) + 1] if name.isdecimal() else [uuid for uuid in uuids if uuid.startswith(name)]
        )
        if name.startswith("MIG-"):
            fits = [name]
        if not name or not fits:
            break
        found.append(fits[0])
    return found


def interconnect() -> str | None:
    """How GPU 0 reaches GPU 1, in nvidia-smi's words (NV18, PIX, SYS, …), or None with fewer than two GPUs."""
    for line in _command("nvidia-smi", "topo", "-m").splitlines():
        cells = line.replace("\x1b[4m", "").replace("\x1b[0m", "").split()
        if len(cells) > 2 and cells[0] == "GPU0" and cells[1] == "X":
            return cells[2] if cells[2].startswith(("NV", "P", "S", "N")) and not cells[2][0].isdigit() else None
    return None


def cpu_name() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout this package is in, with ``+`` when the work tree differs.

    Outside a checkout, what the environment variable GIT_COMMIT says.
    """
    folder = str(Path(__file__).parent)
    commit = _command("git", "-C", folder, "rev-parse", "--short=12", "HEAD").strip()
    changed = _command("git", "-C", folder, "status", "--porcelain", "--untracked-files=no").strip()
    return commit + ("+" if changed else "") if commit else os.environ.get("GIT_COMMIT")


def _nccl_version() -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _query(fields: str) -> list[str]:
    out = _command("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return [line.strip() for line in out.splitlines() if line.strip()]


def _command(*words: str) -> str:
    """Standard output of a command; empty when it is missing, fails, or takes over 20 s."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
