"""A mutant: the package with one change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WINGS = ("matrices", "measure", "kernels", "training", "methods")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: its path in the package.
        line: counted from 1.
        text: of that line.
        change: the line before, and after.
        code: of the whole file, changed.
    """

    file: str
    line: int
    text: str
    change: str
    code: str

    @classmethod
    def intact(cls, file: str) -> Mutant:
        """The file as it is."""
        return cls(file, 0, "", "", (ROOT / "blockshock" / file).read_text(encoding="utf-8"))

    @property
    def wing(self) -> str:
        return self.file.partition("/")[0]
