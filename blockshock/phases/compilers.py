"""What a compiler says of a network that it cannot compile."""

from __future__ import annotations

import re

_RAISED = re.compile(r"[\w.]*(?:Error|Exception)\b: *\S")


def why_not_compiled(error: Exception) -> str:
    """The error and its reason, in a line.

    A compiler that works in other processes quotes theirs, a traceback, behind a line of its own that says nothing:
    the reason is then the last error that is named there.
    """
    first, *others = str(error).strip().splitlines() or [""]
    raised = [line.strip() for line in others if _RAISED.match(line.strip())] if first.endswith(":") else []
    return f"{type(error).__name__}: {raised[-1] if raised else first}"[:200]
