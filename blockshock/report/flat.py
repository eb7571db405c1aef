"""Results as flat rows: what is nested gets names with dots."""

from __future__ import annotations

from typing import Any


def flat(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of an extra_info, lists included, by name: ``stages.matmul.p50_ms``."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
