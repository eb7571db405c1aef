"""What a session keeps in its ``config.stash``, and where it saves runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from blockshock.measure import Ceilings
from blockshock.plugin import journal, progress, saving, together
from blockshock.plugin.settings import Settings

SETTINGS = pytest.StashKey[Settings]()
RECORDS = pytest.StashKey[list[dict[str, Any]]]()
CEILINGS = pytest.StashKey[Ceilings]()
MISSING = pytest.StashKey[dict[str, str]]()
TOGETHER = pytest.StashKey[together.Together]()
JOURNAL = pytest.StashKey[journal.Writer]()
SAVING = pytest.StashKey[saving.Saving]()
PROGRESS = pytest.StashKey[progress.Progress]()
MOST_LOSS = pytest.StashKey[float]()
STARTED = datetime.now()


def stage(config: pytest.Config) -> progress.Stage:
    """How the session says what it does beside its tests."""
    return config.stash[PROGRESS].stage if PROGRESS in config.stash else progress.silent


def storage(config: pytest.Config) -> Path:
    """Where runs are saved."""
    return Path(config.getoption("benchmark_storage").removeprefix("file://"))
