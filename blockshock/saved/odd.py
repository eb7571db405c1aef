"""What a result says that cannot be: which value, and what it must be."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from blockshock.saved.fits import Fits, flag, number, number_or_none, positive, size, text, whole
from blockshock.saved.schema import OTHERWISE, needed

WORDS: dict[Fits, str] = {
    positive: "a number above 0",
    **dict.fromkeys((number, number_or_none), "a number"),
    size: "a whole number above 0",
    whole: "a whole number",
    text: "a text",
    flag: "true or false",
}
"""What a value must be, where that is said in a word."""
LONGEST = 30
"""Characters of a value that are shown."""


class Odd(NamedTuple):
    """A value that is there, and cannot be what it is called.

    Attributes:
        said: it, as the file has it.
        must: what it must be; empty where there is no word for that.
    """

    name: str
    said: str
    must: str


def odd(info: dict[str, Any], name: str) -> Odd | None:
    """What is odd about the value of which ``unfit`` gave the name; None where it is not there."""
    if info.get(name) is None:
        return None
    said, fits = json.dumps(info[name], ensure_ascii=False), (OTHERWISE | needed(info)).get(name)
    must = WORDS.get(fits, "") if fits and not fits(info[name]) else ""  # of one that fits it is another value's doing
    return Odd(name, said if len(said) <= LONGEST else f"{said[:LONGEST]}…", must)
