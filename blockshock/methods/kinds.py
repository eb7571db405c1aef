"""What kinds of methods there are: what each promises, where it runs, and what it is in the comparison."""

from __future__ import annotations

from enum import StrEnum

from blockshock.errors import InputError


class Promise(StrEnum):
    """What "right" means for a method.

    DENSE: its output is that of W. OWN_WEIGHTS: its output is that of its own W′, and how far that is from W is its
    quality, reported and never a failure. LEARNS: a recipe; its loss curve is its quality.
    """

    DENSE = "dense"
    OWN_WEIGHTS = "own weights"
    LEARNS = "learns"


class Span(StrEnum):
    """What a method runs on: ONE device, or the GROUP of ranks."""

    ONE = "one"
    GROUP = "group"


class Role(StrEnum):
    """What a row is in the comparison: a SUBJECT that is asked about, a RIVAL that anybody can have without it, or an
    ABLATION that shows what a part of a subject is worth."""

    SUBJECT = "subject"
    RIVAL = "rival"
    ABLATION = "ablation"


KINDS: dict[str, type[StrEnum]] = {"promise": Promise, "span": Span, "role": Role}
"""By the attributes of a method that say them."""


def check_kinds(method: type) -> None:
    """Has the words of a method's class as what they are, ``"subject"`` as Role.SUBJECT.

    Raises InputError for a word that is none of the choices.
    """
    for name, kind in KINDS.items():
        said = getattr(method, name)
        if said not in list(kind):
            choices = ", ".join(kind)
            raise InputError(f"{method.__name__}: there is no {name} {said!r}. Choices: {choices}")
        if not isinstance(said, kind):
            setattr(method, name, kind(said))
