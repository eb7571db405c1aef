"""What is picked for a method beside its name. An axis is one class: all that a session does with it derives from that.

Its options, what they resolve to, its part of test ids, labels, saved rows and re-run commands, and what the checks on
small layers go through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from blockshock.methods.layer import Layer
from blockshock.registry import Registry

Picks = Mapping[str, str]
"""The spec that was picked of each axis, by its name."""


@dataclass(frozen=True)
class Beside:
    """An option of an axis beside the one that lists its specs; without a metavar, a flag."""

    name: str
    text: str
    metavar: str | None = None


class Axis:
    """One thing to pick. Those that a method declares in ``axes`` are picked for it, in that order.

    Attributes:
        registry: its entries.
        about: for the help, what is picked where nothing is asked for.
        beside: its other options.
        also: options of other axes that what it picks goes by.
        trained_only: picked only where something is trained.
        unsaid: what a row has where its name says nothing of this axis; None: its name always does.
        of_ranks: only several ranks can differ in it; a single one has what is unsaid.
        with_method: among the pairs of choices on small layers a method goes with each of these as one choice, for
            which of these it is decides what it can be combined with.
        holds_masks: what is picked may be a mask that is made already.
        small: the checks of drift and of trajectories go through ``each`` whatever was asked for, because their layers
            are too small for what that may be.
    """

    registry: ClassVar[Registry[Any]]
    about: ClassVar[str] = "Default all"
    beside: ClassVar[tuple[Beside, ...]] = ()
    also: ClassVar[tuple[str, ...]] = ()
    trained_only: ClassVar[bool] = False
    unsaid: ClassVar[str | None] = None
    of_ranks: ClassVar[bool] = False
    with_method: ClassVar[bool] = False
    holds_masks: ClassVar[bool] = False
    small: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name, self.option = name, f"--{name.replace('_', '-')}s"

    def check(self, spec: str) -> None:
        """Raises UnknownName or InputError unless this is a spec of an entry."""
        self.registry.resolve(spec)

    def check_listed(self, spec: str) -> None:
        """The same of what its option lists, some of which may be for more than a layer."""
        self.check(spec)

    def known(self) -> tuple[str, ...]:
        """Names that a spec may begin with."""
        return self.registry.names()

    def names(self, device: str) -> tuple[str, ...]:
        """What ``all`` stands for on a device type."""
        return self.registry.names()

    def asked(self, specs: tuple[str, ...] | None, device: str, beside: Mapping[str, Any]) -> tuple[str, ...] | None:
        """What a session picks; None for what is usual, row by row.

        Args:
            specs: that its option lists; None where that was not given.
            beside: values of its other options and of ``also``, by their names; None or False where not given.
        """
        return specs

    def usual(self, device: str, picks: Picks, both_ways: bool) -> tuple[str, ...]:
        """What is picked where nothing was asked for, beside these picks; of passes that go backward too or do not."""
        return self.names(device)

    def each(self, device: str, picks: Picks) -> tuple[str, ...]:
        """What the checks of drift and of trajectories go through, beside these picks."""
        return self.names(device)

    def covered(self, device: str) -> tuple[str, ...]:
        """What pairs of choices on small layers are made of."""
        return self.names(device)

    def needs_inputs(self, spec: str) -> bool:
        """Whether what is picked looks at calibration inputs."""
        return False

    def unavailable(self, spec: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or one sentence that says why this cannot run there."""
        return None

    def unsuitable(self, spec: str, layer: Layer) -> str | None:
        """None, or one sentence that says why this cannot take that layer, wherever it is."""
        return None


AXES: Registry[type[Axis]] = Registry("axis")


def axis_of(name: str) -> Axis:
    """The axis of that name. Raises UnknownName where there is none."""
    return AXES.get(name)(name)


def all_axes() -> list[Axis]:
    """All there are, in the order in which they were registered."""
    return [axis_of(name) for name in AXES.names()]
