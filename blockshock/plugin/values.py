"""Values of options, each checked: what is wrong names its option and the choices."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from blockshock.errors import BlockShockError, InputError, UnknownName
from blockshock.matrices import MOST_FEATURES
from blockshock.models import WHERE, text
from blockshock.phases import DTYPES
from blockshock.registry import split, whole


def whole_of(option: str, value: str | int, least: int = 1, most: int = MOST_FEATURES) -> int:
    """A whole number in its range."""
    return whole(option, value, least, most=most)


def check_dtype(name: str) -> None:
    """Raises UnknownName if there is no such dtype."""
    if name not in DTYPES:
        near = difflib.get_close_matches(name, DTYPES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"no dtype is named {name!r}.{hint} Choices: {', '.join(DTYPES)}")


def batches_of(asked: str | None) -> tuple[int, ...]:
    """Sequences or images of a pass; none where none are asked for."""
    found = () if asked is None else split("--batches", asked)
    return tuple(dict.fromkeys(whole_of("--batches", one, most=1 << 16) for one in found))


def widths_of(asked: str | None) -> tuple[tuple[int, int], ...]:
    """Widths of feed-forward blocks, each with its hidden features; none where none are asked for."""
    found = () if asked is None else split("--d", asked)
    return tuple(dict.fromkeys(map(_width, found)))


def _width(text: str) -> tuple[int, int]:
    d, times, hidden = text.replace("×", "x").partition("x")
    sizes = [whole_of("--d", size) for size in ([d, hidden] if times else [d])]
    width, features = sizes if times else (sizes[0], 4 * sizes[0])
    if features % 4:
        raise InputError(f"--d {text}: hidden features are cut into groups of four: take a multiple of 4")
    return width, features


def corpus_of(path: str | None) -> str | None:
    """The path of the text that recipes learn, as ranks find it. Raises InputError if it is another text."""
    if path is None:
        return None
    try:
        text.corpus(path)
    except InputError as error:
        raise InputError(f"--corpus: {error}") from None
    return str(Path(path).absolute())


def check_where(name: str) -> None:
    """Raises UnknownName if layers of a network are not named so."""
    if name not in WHERE:
        raise UnknownName(f"a network's layers are not named {name!r}. Choices: {', '.join(WHERE)}")


def choices_of(option: str, asked: str, check: Callable[[str], object], everything: Sequence[str]) -> tuple[str, ...]:
    """The specs of a list, each checked; ``all`` stands for everything."""
    choices = f"all, {', '.join(everything)}"
    specs = list(everything) if asked.strip() == "all" else split(option, asked, choices)
    for spec in specs:
        try:
            check(spec)
        except BlockShockError as error:
            raise InputError(f"{option}: {error}") from None
    return tuple(dict.fromkeys(specs))
