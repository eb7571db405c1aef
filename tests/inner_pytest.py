"""A pytest of its own, for tests of what a session does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIGHT = """
import pytest
from blockshock.phases.case import Case
from blockshock.plugin.clock import clock

CASE = Case("dense_single", {}, "gaussian", 64, 64, 4, "fp32")

@pytest.mark.benchmark(timer=clock, group="light")
@pytest.mark.parametrize("number", range(3))
def test_light(number, row):
    row.save(0, CASE, [1e-3] * 400, {"number": number, "timing": "none"})
"""
"""Tests without ranks: three benchmarks, as large as real ones."""
LIGHT_INFO = '{"number": number, "timing": "none"}'
"""What they save of each."""
LIGHT_OPTIONS = ["--device=cpu", "--ranks=1", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]


def suite(folder: Path, *names: str, conftest: str = "") -> Path:
    """Put this project's settings, tests of it by their names, and what is added to conftest.py into a folder."""
    (folder / "tests").mkdir()
    for name in names:
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "pytest.ini", folder)
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text() + conftest)
    return folder


def light_suite(folder: Path, conftest: str = "") -> Path:
    """Write those tests, and what is added to conftest.py, to a folder."""
    (folder / "test_light.py").write_text(LIGHT)
    (folder / "pytest.ini").write_text((ROOT / "pytest.ini").read_text().replace("testpaths = tests\n", ""))
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text() + conftest)
    return folder


def python_path(*first: Path) -> str:
    """These folders, before those that the user names."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def environment() -> dict[str, str]:
    """With this checkout's package and nothing of an outer session."""
    ours = ("PYTEST_", "FORCE_COLOR", "TORCHELASTIC_")
    left = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return left | {"PYTHONPATH": python_path(ROOT), "COLUMNS": "80", "PY_COLORS": "0"}


def start(folder: Path, *arguments: str, new_session: bool = False) -> subprocess.Popen[str]:
    """Start pytest in the folder. In a session of its own, all that it starts can be told by that."""
    return subprocess.Popen(
        # Without hypothesis's plugin, whose import takes as long as a small run.
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *arguments],
        cwd=folder,
        # What it measures of a busy machine is not to be kept for the user.
        env=environment() | {"XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=new_session,
    )
