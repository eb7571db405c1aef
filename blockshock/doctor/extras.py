"""What is installed: what the layers need, and what only an extra brings."""

from __future__ import annotations

import importlib.metadata
import re

from blockshock.errors import ExtraMissing

LAYERS = ("torch>=2.11", "numpy>=2.0", "filelock>=3.16", "safetensors>=0.4.5")
"""What ``pip install blockshock`` brings."""
EXTRAS = {
    "suite": (
        "hypothesis>=6.115", "pytest>=8.3", "pytest-benchmark>=5.1", "pytest-json-report>=1.5", "pytest-timeout>=2.3",
        "pytest-xdist>=3.6", "rich>=13.9",
    ),
    "report": ("jinja2>=3.1", "rich>=13.9"),
}  # fmt: skip
"""What ``pip install 'blockshock[suite]'`` brings beside."""


def installed(package: str) -> str | None:
    """The version of a package, by its name in a registry; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> list[int]:
    """The numbers of a version, for comparing: [2, 11, 0, 130] of 2.11.0+cu130."""
    return [int(part) for part in re.findall(r"\d+", version)]


def need(what: str, extra: str, *packages: str) -> None:
    """See that what needs the packages of an extra has them; all of them, if none is named.

    Raises:
        ExtraMissing: one is not installed.
    """
    wanted = packages or [requirement.partition(">=")[0] for requirement in EXTRAS[extra]]
    if missing := [package for package in wanted if installed(package) is None]:
        raise ExtraMissing(f"{what} needs {', '.join(missing)}: python -m pip install 'blockshock[{extra}]'")
