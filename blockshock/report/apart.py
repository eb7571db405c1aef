"""Names of benchmarks by what tells them apart."""

from __future__ import annotations

import re

SQUARE = re.compile(r"\bN(\d+)-K\1\b")

SIZE = re.compile(r"[NKB]\d+")


def told_apart(names: list[str]) -> tuple[str, list[str]]:
    """What all names have in common, and of each what the others have not: its point first, then the rest in order.

    Names are those of tests, ``test_forward[METHOD-gaussian-N64-K64-B4-bf16]``; N says K too where all layers are
    square. A single name is left as it is.
    """
    if len(names) < 2:
        return "", names
    square = all(SQUARE.search(name) for name in names)
    parts = [_parts(SQUARE.sub(r"N\1", name) if square else name) for name in names]
    common = [part for part in parts[0] if all(part in other for other in parts)]
    short = [" ".join(part for part in one if part not in common) for one in parts]
    return ", ".join(dict.fromkeys(common)), [found or name for found, name in zip(short, names, strict=True)]


def _parts(name: str) -> list[str]:
    found = [part for part in re.split(r"[\[\]-]", name.removeprefix("test_")) if part]
    return sorted(found, key=lambda part: SIZE.fullmatch(part) is None)
