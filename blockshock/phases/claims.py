"""Which hypotheses are about which rows at which points, and what their rivals are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from blockshock.methods import Promise, Role, axis_of, method_of
from blockshock.phases.case import Case
from blockshock.phases.ffn import FFNCase
from blockshock.phases.hypotheses import BLOCKS, HYPOTHESES, LAYERS, NETWORK, NETWORKS, Hypothesis
from blockshock.training import storage_of


@dataclass(frozen=True)
class Claim:
    """A hypothesis at one point, about one row.

    Attributes:
        name: of the hypothesis.
        rivals: cases at the same point, of which the fastest is the rival.
    """

    name: str
    hypothesis: type[Hypothesis]
    case: Case
    rivals: tuple[Case, ...]

    @property
    def id(self) -> str:
        return f"{self.name}-{self.case.id}"

    @property
    def group(self) -> str:
        """One group of the comparison: all points of one row."""
        trained = [self.case.optimizer] if self.hypothesis.training() else []
        told = [self.name, self.case.label, *filter(None, trained), f"against {self.hypothesis.rivals}"]
        return " ".join(told)


def claims(cases: list[Case], trained: list[Case], ranks: int) -> Iterator[Claim]:
    """Every hypothesis about layers, about every case of a forward grid, or of a training grid, that it is about.

    Left out are rivals that one rank alone cannot be, with hypotheses that then have none; and storages that compress
    only every k-th step: no single step, captured, is the mean one, and between two compressions the weights are not
    those of dense training.
    """
    formats = dict.fromkeys(filter(None, (case.pick("format") for case in cases)))
    for name, hypothesis in _registered(LAYERS):
        chosen = hypothesis.rivals
        rivals = [
            rival
            for rival in ([chosen] if isinstance(chosen, str) else chosen.specs(case.method for case in cases))
            if ranks > 1 or not method_of(rival)[0].sharded
        ]
        for case in trained if hypothesis.training() else cases:
            if rivals and hypothesis.concerns(case.method) and compresses_every_time(case):
                every = (one for rival in rivals for one in _rivals(case, rival, formats))
                found = [one for one in every if _share(hypothesis, case, one)]
                if found:
                    yield Claim(name, hypothesis, case, tuple(dict.fromkeys(found)))


def network_claims(cases: list[Case]) -> Iterator[Claim]:
    """Every hypothesis about whole networks, about every row in one that it is about, beside the network as it is."""
    for name, hypothesis in _registered(NETWORKS):
        for case in cases:
            if hypothesis.concerns(case.method):
                yield Claim(name, hypothesis, case, (case.of(NETWORK),))


def ffn_claims(cases: list[FFNCase]) -> Iterator[Claim]:
    """Every hypothesis about feed-forward blocks, about every row in one that it is about and that makes anything 2:4,
    beside the dense blocks of the cases."""
    for name, hypothesis in _registered(BLOCKS):
        for case in cases:
            dense = replace(case, method=NETWORK, picks={})
            rivals = tuple(one for one in (dense, replace(dense, compiled=True)) if one in cases)
            sparse = method_of(case.method)[0].plays(case.picks) is Role.SUBJECT
            if rivals and sparse and hypothesis.concerns(case.method):
                yield Claim(name, hypothesis, case, rivals)


def _registered(about: str) -> Iterator[tuple[str, type[Hypothesis]]]:
    every = ((name, HYPOTHESES.get(name)) for name in HYPOTHESES.names())
    return ((name, found) for name, found in every if found.about() == about)


def _share(hypothesis: type[Hypothesis], case: Case, rival: Case) -> bool:
    """Whether both have the picks that the hypothesis has them share; and an ablation all that the row has, such as a
    format: else more than what it is for would tell the two apart."""
    kind = method_of(rival.method)[0]
    if kind.role is Role.ABLATION and any(axis_of(axis).unsaid and axis not in kind.axes for axis in case.picks):
        return False
    return all(case.pick(axis) is not None and case.pick(axis) == rival.pick(axis) for axis in hypothesis.sharing)


def _rivals(case: Case, method: str, formats: Iterable[str]) -> Iterator[Case]:
    """The rival with the same picks; as everybody has it, where a pick would make another of it; and in every format
    that is asked for, where a row in one has weights of its own: what it loses by these is more than any format does.
    """
    rival = case.of(method, method_of(method)[0].axes)
    yield rival
    yield rival.picking(**{axis: None for axis in rival.picks if axis_of(axis).unsaid is not None})
    if rival.pick("format") and method_of(case.method)[0].promise is Promise.OWN_WEIGHTS:
        yield from (rival.picking(format=format) for format in formats)


def compresses_every_time(case: Case) -> bool:
    """Whether what multiplies is what the parameters hold, after each step."""
    storage = case.pick("storage")
    return storage is None or storage_of(storage)[1].get("every", 1) == 1
