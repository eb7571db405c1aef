"""Octaves of tokens: what is searched for one length serves all lengths between two powers of two."""

from __future__ import annotations

_LEAST = 8
_MOST = tuple(_LEAST << octave for octave in range(40))


def bucket_of(tokens: int) -> int:
    """The most tokens that share a search with so many: of one octave, so that not every length is searched."""
    for most in _MOST:
        if tokens <= most:
            return most
    return tokens


def octave_of(tokens: int, multiple: int) -> tuple[int, int]:
    """The fewest and the most tokens that share a search with so many, where a product takes multiples."""
    most = -(-bucket_of(tokens) // multiple) * multiple
    return (most // 2 // multiple + 1) * multiple if most > multiple else most, most
