"""A row of the table by its name: ``block_shock-cusparselt:search=no-tile``, the method and its picks, in order."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blockshock.errors import InputError, UnknownName
from blockshock.matrices import Mask
from blockshock.methods.axes import Axis, all_axes, axis_of
from blockshock.methods.base import METHODS, Method
from blockshock.methods.specs import method_of

T = TypeVar("T")

# A minus sign in a number does not end a part.
_PARAMETERS = r"(?::[^:=-]*=(?:-?\d[\d.]*(?:e[+-]?\d+)?|[^:-]*))*"


@dataclass(frozen=True)
class Row:
    """A method with what was picked for it.

    Attributes:
        method: spec.
        picks: a spec by the name of its axis; a mask, and that of a pruner, may be one that is made already.
    """

    method: str
    picks: Mapping[str, str | Mask] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is read by ``parse_row``; of a mask that is made already the name of its axis."""
        picks = [axis if isinstance(picked, Mask) else picked for axis, picked in self.picks.items()]
        return "-".join([self.method, *picks])

    @property
    def kind(self) -> type[Method]:
        return method_of(self.method)[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """What the method's ``__init__`` takes beside layer and group."""
        return method_of(self.method)[1]

    def completed(self, device: str, both_ways: bool = True) -> Row:
        """The same with what is usual of each axis not picked, on a device type; of passes that go backward too, or
        of others, where nothing is picked of what is for training."""
        picks: dict[str, str | Mask] = {}
        for axis in self.kind.axes:
            if axis_of(axis).trained_only and not both_ways:
                continue
            picked = {name: spec for name, spec in picks.items() if isinstance(spec, str)}
            found = self.picks.get(axis)
            picks[axis] = axis_of(axis).usual(device, picked, both_ways)[0] if found is None else found
        said = {axis: found for axis, found in picks.items() if found != axis_of(axis).unsaid}
        return Row(self.method, said)


def parse_row(text: str) -> Row:
    """The row of that name: the method, then a spec of each of its axes in order. Between them stand dashes, or blanks
    as in the tables. The last ones may be left out, and any of what is for training or may go unsaid.

    Raises:
        UnknownName, InputError: a part is none of its choices, or has a parameter that it does not take, or there are
            more parts than axes. The message says which.
    """
    if not isinstance(text, str):
        raise InputError(f"a row is given by its name, such as 'block_shock-auto', got {text!r}")
    text = "-".join(text.split())  # no name holds a blank
    method, rest = _part(text, METHODS.names())
    kind = _sound(text, "method", method, method_of)[0]
    picks: dict[str, str | Mask] = {}
    axes = [axis_of(name) for name in kind.axes]
    for place, axis in enumerate(axes):
        if rest is not None and not _left_out(rest, axis, axes[place + 1 :]):
            picks[axis.name], rest = spec, _ = _part(rest, axis.known())
            _check_known(text, spec, _meant(axes[place:]))
            _sound(text, axis.name, spec, axis.check)
    if rest is not None:
        takes = f"takes {', '.join(kind.axes)}" if kind.axes else "has no axes to pick of"
        raise InputError(f"row {text!r}: {rest!r} is left over: {method} {takes}")
    return Row(method, picks)


def _may_lack(axis: Axis) -> bool:
    """Whether a row may say nothing of it, and go on with others."""
    return axis.trained_only or axis.unsaid is not None


def _meant(axes: list[Axis]) -> list[Axis]:
    """Those of the axes to come that the next spec may be of."""
    said = next((place for place, axis in enumerate(axes) if not _may_lack(axis)), len(axes))
    return axes[: said + 1]


def _check_known(text: str, spec: str, axes: list[Axis]) -> None:
    """Raises UnknownName, of a spec that may be of several axes and is of none, which names them all."""
    name = spec.partition(":")[0]
    kinds = {known: axis.name for axis in axes for known in axis.known()}
    if len(axes) == 1 or name in kinds:
        return
    near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.5)
    hint = f" Did you mean the {kinds[near[0]]} {near[0]!r}?" if near else ""
    elsewhere = next((axis.name for axis in all_axes() if name in axis.known()), None)
    other = f", but {'an' if elsewhere[0] in 'aeiou' else 'a'} {elsewhere}" if elsewhere else ""
    choices = "; ".join(f"of {axis.name} {', '.join(axis.known())}" for axis in axes)
    nothing = " and ".join(f"no {axis.name}" for axis in axes)
    raise UnknownName(f"row {text!r}: {name!r} is {nothing}{other}.{hint} Choices: {choices}")


def _left_out(text: str, axis: Axis, others: list[Axis]) -> bool:
    """Whether a text goes on with a spec of a later axis, where a row may have none of this one."""
    if not _may_lack(axis):
        return False
    name = _part(text, [known for one in (axis, *others) for known in one.known()])[0].partition(":")[0]
    return name not in axis.known() and any(name in other.known() for other in others)


def _part(text: str, names: Sequence[str]) -> tuple[str, str | None]:
    """The spec that a text begins with, and what comes after it; names may hold hyphens."""
    for name in sorted(names, key=len, reverse=True):
        if found := re.match(rf"({re.escape(name)}{_PARAMETERS})(-|$)", text):
            return found[1], text[found.end() :] if found[2] else None
    spec, hyphen, rest = text.partition("-")
    return spec, rest if hyphen else None


def _sound(text: str, what: str, spec: str, check: Callable[[str], T]) -> T:
    """What the check of a spec gives."""
    try:
        return check(spec)
    except (UnknownName, InputError) as error:
        told = str(error).removeprefix(f"{spec!r}: ")
        raise type(error)(f"row {text!r}: {told if spec == text else f'its {what} {spec!r}: {told}'}") from None
