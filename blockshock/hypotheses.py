"""The questions that the suite is asked to decide, each about a Block-Shock case and a rival at the same point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from blockshock.methods import METHODS
from blockshock.phases.case import Case


@dataclass(frozen=True)
class Hypothesis:
    """A claim that Block-Shock is faster than a rival, forward or over a training step.

    Attributes:
        statement: what is supported or rejected: that a ratio is below one.
        rival: the method it is compared with.
        training: the ratio is that of the forward pass over that of a training step; otherwise of the forward pass.
    """

    name: str
    statement: str
    rival: str
    training: bool = False


HYPOTHESES = (
    Hypothesis("H1", "forward, it is faster than tensor parallelism on as many GPUs", "dense_tp_row"),
    Hypothesis("H2", "it stands worse against tensor parallelism in training than forward", "dense_tp_row", True),
    Hypothesis("H3", "forward, it is faster than the ablation that multiplies the zeros", "masked_split_dense"),
    Hypothesis("H4", "forward, it is faster than one dense GPU", "dense_single"),
)


@dataclass(frozen=True)
class Claim:
    """A hypothesis at one point, about one kernel and mask."""

    hypothesis: Hypothesis
    case: Case

    @property
    def id(self) -> str:
        return f"{self.hypothesis.name}-{self.case.id}"

    @property
    def group(self) -> str:
        """One group of the comparison: all points of one kernel and mask."""
        trained = [self.case.optimizer] if self.hypothesis.training else []
        return " ".join([self.hypothesis.name, self.case.label, *filter(None, trained), "against", self.rival.method])

    @property
    def rival(self) -> Case:
        """The rival's case at the same point."""
        picks = METHODS.get(self.hypothesis.rival).picks
        mask = self.case.mask if "mask" in picks else None
        return replace(self.case, method=self.hypothesis.rival, kernel=None, mask=mask, storage=None)


def claims(cases: list[Case], trained: list[Case]) -> Iterator[Claim]:
    """Every hypothesis about every Block-Shock case of a forward grid, or of a training grid."""
    for hypothesis in HYPOTHESES:
        for case in trained if hypothesis.training else cases:
            if case.method == "block_shock":
                yield Claim(hypothesis, case)
