"""A pytest of its own, for tests of what a session does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """With this checkout's package and nothing of an outer session."""
    ours = ("PYTEST_", "FORCE_COLOR", "TORCHELASTIC_")
    left = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return left | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "PY_COLORS": "0"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start pytest in the folder."""
    return subprocess.Popen(
        # Without hypothesis's plugin, whose import takes as long as a small run.
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
