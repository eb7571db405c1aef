"""What programs that measure for a page share: where they ran, and a page of all that was measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from blockshock.machine import environment


def ran_here(gpu: str) -> dict[str, Any]:
    """What is saved of where it ran, and of what it was made."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {"gpu": gpu, "versions": versions, "commit": environment.git_commit(), "seed": 0}


def heading(folder: str, name: str, found: dict[str, Any], of: str) -> list[str]:
    """How the section of a run begins, which is ``of`` such numbers."""
    versions = ", ".join(f"{what} {version}" for what, version in found["versions"].items())
    made = f"{of} seed {found['seed']}; {versions}, commit {found['commit']}; `{folder}/{name}.json`."
    return [f"## {name}: {found['gpu']}", "", made, ""]


def page_of(folder: Path, lines: Callable[[str, dict[str, Any]], Iterable[str]]) -> str:
    """What the folder says it is about, and the section of each run in it."""
    parts = [(folder / "about.md").read_text(encoding="utf-8").rstrip()]
    for path in sorted(folder.glob("*.json")):
        parts.append("\n".join(lines(path.stem, json.loads(path.read_text(encoding="utf-8")))))
    return "\n\n".join(parts) + "\n"
