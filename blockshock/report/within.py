"""Which row is the fastest at each batch size, of those that lose no more than is asked: ``--most-loss``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from blockshock.report.alike import UNPAIRED, Speed, least_losing
from blockshock.report.asked import counted, median, spanned
from blockshock.report.models import PASSES
from blockshock.report.networks import LAYERS, beside, places, speed
from blockshock.report.points import every_row, pays, place_of
from blockshock.report.tables import Info
from blockshock.saved import BITS, COSINE, OUTPUT, Run, is_alone, is_dense, judges, loss_of, section_of, sound


class _Faster(NamedTuple):
    """A row that is faster than the dense alternative at a point."""

    label: str
    speed: Speed


@dataclass
class _Field:
    """What is told in one line: of one pass and dtype, or of one network.

    Attributes:
        name, measure: what it is about, and what losses are measured by there.
        points: by batch size, of each point the dense alternative and the rows that are faster.
        told: whether a row that does not keep W says what it loses.
    """

    name: str
    measure: str
    points: dict[int, dict[object, tuple[str, list[_Faster]]]] = field(default_factory=lambda: defaultdict(dict))
    told: bool = False

    def add(self, B: int, point: object, dense: str, row: Info, faster: Speed | None) -> None:
        """A row at a point; ``faster`` beside the dense alternative, where it is."""
        loss = loss_of(row)
        self.told |= loss is not None and row["promise"] != "dense"
        _, rows = self.points[B].setdefault(point, (dense, []))
        if faster is not None:
            rows.append(_Faster(row["label"], faster))


def within_lines(run: Run, most: float) -> Iterator[str]:
    """Of each batch size the fastest row, the dense alternative included, of those that lose at most that: a line for
    the layers in each pass and dtype, and one for each network.

    None where no row says what it loses beside the dense ones, as in networks whose weights are drawn.
    """
    for found in (*_layers(run.infos), *_networks(run.infos)):
        if found.told:
            told = (
                f"{found.name}, losing at most {most:g} {found.measure}: fastest, time ÷ dense: {_fastest(found, most)}"
            )
            yield "; ".join([told, *_beyond(found, most)])


def _fastest(found: _Field, most: float) -> str:
    """By batch size, neighbours of one winner together."""
    each = [(B, [_winner(*point, most) for point in points.values()]) for B, points in sorted(found.points.items())]
    told = []
    for winner, group in groupby(each, key=lambda one: counted(row.label for row in one[1])):
        Bs, rows = zip(*group, strict=True)
        ratios = [row.speed.ratio for some in rows for row in some]
        numbers = "" if all(ratio == 1 for ratio in ratios) else f" ({median(ratios)})"
        told.append(f"B = {spanned(Bs, 'd')} {winner}{numbers}")
    return ", ".join(told)


def _winner(dense: str, faster: Iterable[_Faster], most: float) -> _Faster:
    kept = [row for row in faster if row.speed.loss is not None and row.speed.loss <= most]
    return least_losing(kept, lambda row: row.speed) if kept else _Faster(dense, Speed(1.0, 0.0))


def _beyond(found: _Field, most: float) -> Iterator[str]:
    """What is faster and left out: the least that such a row loses, and those of which nothing says it."""
    every = [row for points in found.points.values() for _, faster in points.values() for row in faster]
    losing = [(loss, row.label) for row in every if (loss := row.speed.loss) is not None and loss > most]
    if losing:
        loss, label = min(losing, key=lambda one: one[0])
        yield f"faster rows that lose more lose {loss:.3g} or more ({label})"
    if unknown := dict.fromkeys(row.label for row in every if row.speed.loss is None):
        yield f"nothing says what {', '.join(unknown)} loses"


def _layers(infos: list[Info]) -> Iterator[_Field]:
    about: dict[tuple[object, ...], Info] = {}
    for info in infos:
        if section := judges(info) or section_of(info):
            about.setdefault((*place_of(section, info), info["label"]), info)
    fields: dict[tuple[str, str, bool], _Field] = {}
    for key, one in every_row(infos).items():
        info = about[key]
        if not (is_dense(info) or info["role"] == "ablation"):
            found = fields.setdefault((one.section, one.dtype, is_alone(info)), _Field(PASSES[one.section], OUTPUT))
            found.add(one.B, one.place, one.rival, info, one.speed if pays(one) else None)
    for (_, dtype, alone), found in fields.items():
        apart = {dtype: len({of[1] for of in fields}) > 1, "on one device": alone and len({of[2] for of in fields}) > 1}
        found.name = ", ".join([found.name, *(word for word, tells in apart.items() if tells)])
    yield from fields.values()


def _networks(infos: list[Info]) -> Iterator[_Field]:
    fields: dict[tuple[str, str, str], _Field] = {}
    for (network, where, B, dtype), rows in places(infos).items():
        measure = BITS if any("added_bits_per_byte" in row["likeness"] for row in rows) else COSINE
        name = f"{network}, {LAYERS.get(where, where)}, {dtype}"
        found = fields.setdefault((network, where, dtype), _Field(name, measure))
        for row in rows:
            whole = beside(row, rows).whole
            if whole is not None and sound(row) and not (is_dense(row) or row["role"] == "ablation"):
                found.add(B, where, "the network as it is", row, speed(row, whole) if whole < 1 - UNPAIRED else None)
    yield from fields.values()
