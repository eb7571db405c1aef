"""Sources in CUDA C++, which lie in this folder in parts."""

from __future__ import annotations

from pathlib import Path


def source_of(*names: str) -> str:
    """Files of this folder, by their names, one behind the other."""
    return "\n".join((Path(__file__).parent / f"{name}.cu").read_text(encoding="utf-8") for name in names)
