"""Where what was searched, measured or compiled is remembered for a user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/blockshock``, by default ``~/.cache/blockshock``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockshock"
