"""Text for streams that cannot write every character: a terminal or a log that is not UTF-8 gets plain ones instead."""

from __future__ import annotations

from typing import IO, Any

PLAIN = {
    "×": "x", "÷": "/", "–": "-", "—": "-", "─": "-", "†": "+", "‡": "#", "§": "*", "±": "+-", "≥": ">=", "≤": "<=",
    "µ": "u", "…": "...", "·": ".", "→": "->", "ᵀ": "T", "′": "'", "∞": "inf",
}  # fmt: skip
"""What stands for a character that cannot be written; a question mark stands for all others."""


class Plain:
    """A text stream, as its stream is but for ``write``: what that cannot encode is written plainly."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(plain(text, getattr(self._stream, "encoding", None)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def plain(text: str, encoding: str | None) -> str:
    """The text with nothing in it that cannot be encoded; ``encoding`` is UTF-8 where a stream does not say its own."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_written(character, encoding) for character in text)
    return text


def _written(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return PLAIN.get(character, "?")
    return character
