"""The questions that the suite is asked to decide, each about a Block-Shock case and a rival at the same point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blockshock.methods import METHODS
from blockshock.phases.case import Case
from blockshock.training import storage_of

BEST_DENSE = ("dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")
"""What anybody can have without halves. Which of them is fastest changes with the point."""


@dataclass(frozen=True)
class Hypothesis:
    """A claim that Block-Shock is faster than a rival, forward or over a training step.

    Attributes:
        statement: what a ratio below one means.
        rivals: methods, of which the fastest at the point is the rival.
        passes: what pairs are timed of, ``forward`` or ``training``. With both, the ratio is that of the forward ratio
            over the training one.
    """

    name: str
    statement: str
    rivals: tuple[str, ...]
    passes: tuple[str, ...] = ("forward",)

    @property
    def training(self) -> bool:
        """Whether it is about cases that are trained."""
        return "training" in self.passes

    @property
    def against(self) -> str:
        """The rival, for a reader."""
        return "the best dense one" if self.rivals == BEST_DENSE else self.rivals[0]


HYPOTHESES = (
    Hypothesis("H1", "forward, it is faster than the best dense alternative on these GPUs", BEST_DENSE),
    Hypothesis(
        "H2",
        "it stands worse against tensor parallelism in training than forward",
        ("dense_tp_row",),
        ("forward", "training"),
    ),
    Hypothesis("H3", "forward, it is faster than the ablation that multiplies the zeros", ("masked_split_dense",)),
    Hypothesis("H4", "forward, it is faster than one dense GPU", ("dense_single",)),
    Hypothesis("H5", "a training step is faster than the best dense alternative's", BEST_DENSE, ("training",)),
)


@dataclass(frozen=True)
class Claim:
    """A hypothesis at one point, about one kernel and mask.

    Attributes:
        rivals: cases at the same point, of which the fastest is the rival.
    """

    hypothesis: Hypothesis
    case: Case
    rivals: tuple[Case, ...]

    @property
    def id(self) -> str:
        return f"{self.hypothesis.name}-{self.case.id}"

    @property
    def group(self) -> str:
        """One group of the comparison: all points of one kernel and mask."""
        trained = [self.case.optimizer] if self.hypothesis.training else []
        told = [self.hypothesis.name, self.case.label, *filter(None, trained), "against", self.hypothesis.against]
        return " ".join(told)


def claims(cases: list[Case], trained: list[Case], ranks: int) -> Iterator[Claim]:
    """Every hypothesis about every Block-Shock case of a forward grid, or of a training grid.

    Left out are rivals that one rank alone cannot be, with hypotheses that then have none; and storages that compress
    only every k-th step: no single step, captured, is the mean one, and between two compressions the weights are not
    those of dense training.
    """
    for hypothesis in HYPOTHESES:
        rivals = [name for name in hypothesis.rivals if ranks > 1 or not METHODS.get(name).sharded]
        for case in trained if hypothesis.training else cases:
            if rivals and case.method == "block_shock" and _compresses_every_time(case):
                yield Claim(hypothesis, case, tuple(_rival(case, name) for name in rivals))


def _rival(case: Case, method: str) -> Case:
    return case.of(method, METHODS.get(method).axes)


def _compresses_every_time(case: Case) -> bool:
    storage = case.pick("storage")
    return storage is None or storage_of(storage)[1].get("every", 1) == 1
