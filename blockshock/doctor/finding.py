"""What a check of the doctor's finds, and how checks are made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken", "n.a."]
Look = Callable[..., "Finding"]
"""A check, or ``look_into`` bound to its list."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, what was found, and what the user can do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


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
