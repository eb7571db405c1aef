"""The verdicts on one row, point by point: the ratio, its interval, what follows, and what the row loses beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from blockshock.report.tables import Cell, Column, Info, Table, columns, loses, lossy, mark, point
from blockshock.saved import BITS, COSINE, judges, loss_of, several
from blockshock.saved.pairs import WIDE, Ratio, ratio_of_blocks

ANSWERS = {"faster": "yes", "slower": "no", "tie": "no difference", "undecided": "undecided"}
"""A hypothesis says what it means that its row is faster: a ratio below one."""
TWO_PASSES = "forward ÷ training: time ÷ rival of a forward pass, over time ÷ rival of a training step"
"""What the ratio of a verdict on both is."""
LOSSES = {COSINE: "1 − cosine", BITS: "added bits/byte"}
"""Columns of what networks lose."""
HALF_GAINED = (
    "÷ half gained: time of a pass over that of one which gained half of what its layers alone gain: the dense pass's "
    "÷ (1 + (dense layers ÷ layers − 1) ÷ 2)"
)
"""What the ratio of a verdict on a network is."""


def ratio_of(row: Info) -> str | None:
    """What the ratio of a verdict is one of, where it is not of two times alone."""
    if judges(row) is not None:
        return None
    return "÷ half gained" if row.get("network") else "forward ÷ training"


def explained(rows: list[Info]) -> Iterator[str]:
    """What such ratios of these verdicts are, each once."""
    kinds = {ratio_of(row) for row in rows}
    yield from (text for text in (TWO_PASSES, HALF_GAINED) if text.partition(":")[0] in kinds)


def verdicts(name: str, rows: list[Info]) -> Table:
    """One hypothesis about one row: the ratio at each point to the rival there, and at how many it holds."""
    networks = bool(rows[0].get("network"))
    place = columns(network="", where="", B="d", dtype="") if networks else columns(workload="", N="d", K="d", B="d")
    shown = (*place, *(() if networks else columns(dtype="")), *columns(rival=""))
    ratio, word = ratio_of(rows[0]), _verdict if judges(rows[0]) else in_words
    measures = [measure for measure in LOSSES if any(loss.of == measure for row in rows if (loss := loss_of(row)))]
    lost = columns(**{LOSSES[measure]: ".3f" for measure in measures})
    more = (*columns(whole=".3f", layers=".3f"), *lost) if networks else lossy(rows)
    found = (Column(ratio or "ratio", ".3f"), Column("95 % interval"), Column("answer" if ratio else "verdict"))
    table = Table(f"{name}: {rows[0]['statement']}", "verdicts", (*shown, *found, *more))
    for row in rows:
        interval = f"{row['ratio_low']:.3f} – {row['ratio_high']:.3f}{' wide' if wide(row) else ''}"
        at = tuple(row.get(column.name) for column in place) if networks else point(row)
        rest = _of_network(row, measures) if networks else loses(table, row)
        table.rows.append((*at, row["rival"], row["ratio"], interval, word(row) + mark(row), *rest))
    counts = ", ".join(f"{verdict} at {count}" for verdict, count in Counter(map(word, rows)).most_common())
    table.notes.append(f"of {several(len(rows), 'point')} {counts} (margin {rows[0]['margin']:.0%})")
    table.notes += explained(rows)
    if networks:
        table.notes.append("whole, layers: of a pass and of its layers alone, time ÷ rival's")
    if any(map(wide, rows)):
        table.notes.append(f"wide: an interval of more than a factor of {WIDE:g} from end to end: measure again")
    return table


def _of_network(row: Info, measures: list[str]) -> tuple[Cell, ...]:
    """The ratios of times that the verdict rests on, and what the outputs lose."""
    loss = loss_of(row)
    lost = (loss.value if loss is not None and loss.of == measure else None for measure in measures)
    return *(over(row, name) for name in ("network", "linears")), *lost


def over(row: Info, name: str) -> float | None:
    """Time ÷ rival's of one of a verdict's pairs; None where the run does not have it, or what it has is no time."""
    pair = (row.get("blocks") or {}).get(name)
    try:
        return None if pair is None else ratio_of_blocks(pair["first"], pair["second"], pair["pilot"]).value
    except ValueError:
        return None


def in_words(row: Info) -> str:
    """Whether what a verdict was asked for holds."""
    return ANSWERS.get(row["verdict"], str(row["verdict"]))


def _verdict(row: Info) -> str:
    return str(row["verdict"])


def wide(row: Info) -> bool:
    """Whether the interval of a verdict is too wide to act on."""
    return Ratio(row["ratio"], row["ratio_low"], row["ratio_high"]).wide
