"""Numbers in sentences."""

from __future__ import annotations


def several(count: int, one: str, many: str = "") -> str:
    """The count with what it counts: ``1 result``, ``2 results``; ``many`` where more than one end in no ``s``."""
    return f"{count} {one if count == 1 else many or one + 's'}"
