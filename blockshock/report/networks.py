"""Whole networks: what a row takes of a pass, what it can take at best, and what its outputs are still like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from blockshock.report.alike import UNPAIRED, Speed, least_losing
from blockshock.report.asked import spanned
from blockshock.report.faulty import NOTHING_BESIDE, add_dense
from blockshock.report.losing import LEAVE_NO_ZEROS
from blockshock.report.tables import Column, Info, Table, columns, footnotes, mark, mib, ratio, spread
from blockshock.saved import LIKENESS, Run, best_dense, is_dense, loss_of, section_of, sound

PLACE = ("network", "where", "B", "dtype")
LAYERS = {"blocks": "all linear layers of its blocks", "mlp": "those of its feed-forward parts"}
_NUMBERS = {
    "p50 ms": ".4f",
    "÷ dense": ".2f",
    "layers ms": ".4f",
    "layers ÷ dense": ".2f",
    "share of dense": ".0%",
    "÷ at best": ".2f",
    "compiled ms": ".4f",
    "weights MiB": ",.1f",
    "peak MiB": ",.1f",
    "cosine": ".3f",
    "least": ".3f",
    "Spearman": ".3f",
    "bits/byte": ".3f",
    "added": "+.3f",
}


class Beside(NamedTuple):
    """A row beside the dense network.

    Attributes:
        whole: time of a pass over the dense network's.
        layers: of the layers that are replaced, alone.
        share: what these take of the dense pass.
    """

    whole: float | None
    layers: float | None
    share: float | None

    @property
    def best(self) -> float | None:
        """A pass over the dense one's, if these layers took no time: Amdahl's limit."""
        return None if self.share is None else max(1 - self.share, 0.0)

    @property
    def kept(self) -> float | None:
        """What the whole gains over what its layers gain, of a ratio r each gains 1 ÷ r − 1; None where one gains
        nothing."""
        if not (self.whole and self.layers and max(self.whole, self.layers) < 1):
            return None
        return (1 / self.whole - 1) / (1 / self.layers - 1)


def network_tables(infos: list[Info]) -> Iterator[Table]:
    """One table of all rows, by network, the fastest first; none where there are none."""
    found_at = places(infos)
    if not found_at:
        return
    named = columns(network="", where="", B="d", dtype="", method="")
    table = Table("Time and likeness", "networks", (*named, *(Column(*number) for number in _NUMBERS.items())))
    for rows in found_at.values():
        for row in sorted(rows, key=lambda row: row.get("p50_ms", 0.0)):
            found, like, alone = beside(row, rows), row["likeness"], row.get("alone") or {}
            times = (row.get("p50_ms"), found.whole, _ms(alone, "linears"), found.layers, found.share, found.best)
            held = (_ms(alone, "compiled"), mib(row.get("weight_bytes")), mib(row.get("steady_peak_bytes")))
            likes = (like.get(name) for names in LIKENESS for name in names)
            table.rows.append((*(row[name] for name in PLACE), row["label"] + mark(row), *times, *held, *likes))
    table.notes += [
        "layers: those that are replaced, run alone; share: theirs of the dense pass; at best: if they took no time",
        "cosine: of embeddings of unseen sentences with the dense network's, the mean and the least; Spearman: rank "
        "correlation of the similarities of all pairs. bits/byte: of text that was held out, and how many more than of "
        "the dense network. Of networks with trained weights alone; nothing was retrained",
        *_not_compiled(infos),
        *footnotes([row for rows in found_at.values() for row in rows]),
    ]
    yield table


def network_lines(run: Run) -> Iterator[str]:
    """One for each method that is asked about, in each network: of its fastest rows the one that loses least; and what
    to add where that stands beside no dense row."""
    for (network, where, B, dtype), rows in places(run.infos).items():
        asked = [(row, beside(row, rows)) for row in rows if row["role"] == "subject" and sound(row)]
        timed = [(row, found, speed(row, found.whole)) for row, found in asked if found.whole is not None]
        if any("p50_ms" in row for row, _ in asked) and not any(map(is_dense, rows)):
            yield f"{_place(network, where, B, dtype)}: {NOTHING_BESIDE}: {add_dense(asked[0][0], rows)}"
        for method in dict.fromkeys(row["method"] for row, *_ in timed):
            ours = [one for one in timed if one[0]["method"] == method]
            row, found, own = least_losing(ours, lambda one: one[-1])
            told = f"{_place(network, where, B, dtype)}: {row['label']}, time ÷ dense {own.ratio:.2f}"
            told += _scatter(own, [other for *_, other in ours])
            yield "; ".join([told, *_layers(found), *_like(row["likeness"])])


def speed(row: Info, whole: float) -> Speed:
    """Of a row in a network: by which it is told from others there, its pass taking that much of the dense one's."""
    loss = loss_of(row)
    return Speed(whole, None if loss is None else loss.value, spread(row), work=_work(row))


def _work(row: Info) -> tuple[Any, ...] | None:
    """The method, what it ran, its bytes, and its picks, less which weights of W they keep."""
    if not row.get("algorithm"):
        return None
    parameters = ((axis, spec.partition(":")[2]) for axis, spec in row["picks"].items() if axis not in LEAVE_NO_ZEROS)
    others = ((axis, spec) for axis, spec in row["picks"].items() if axis in LEAVE_NO_ZEROS)
    return (row["method"], row["algorithm"], row["weight_bytes"], *sorted(parameters), *sorted(others))


def _scatter(one: Speed, others: list[Speed]) -> str:
    """How far apart the times of the same work lie, where that is too far for one of them to be believed."""
    same = [other.ratio for other in others if one.work is not None and other.work == one.work]
    if not same or max(same) <= min(same) * (1 + UNPAIRED):
        return ""
    return f" ({spanned(same)} of the {len(same)} rows that run the same kernel)"


def _place(network: str, where: str, B: int, dtype: str) -> str:
    return f"{network}, {LAYERS.get(where, where)} (B = {B}, {dtype})"


def _layers(found: Beside) -> Iterator[str]:
    if found.layers is not None and found.share is not None and found.best is not None:
        yield f"these layers alone {found.layers:.2f}, {found.share:.0%} of the dense pass: at best {found.best:.2f}"
    if found.kept is not None:
        yield f"the whole gains {found.kept:.0%} of what they gain"


def _like(likeness: dict[str, float]) -> Iterator[str]:
    if "cosine" in likeness:
        yield f"cosine with the dense embeddings {likeness['cosine']:.3f}, Spearman {likeness['spearman']:.3f}"
    elif likeness:
        added, bits = likeness["added_bits_per_byte"], likeness["bits_per_byte"]
        yield f"loses {added:.3f} bits per byte, {bits:.3f} in place of {bits - added:.3f}"


def beside(row: Info, rows: Iterable[Info]) -> Beside:
    """A row beside the best dense one of its place."""
    dense = best_dense(rows, row)
    if dense is None or "p50_ms" not in row:
        return Beside(None, None, None)
    layers = _ms(dense.get("alone") or {}, "linears")
    return Beside(
        ratio(row["p50_ms"], dense["p50_ms"]),
        ratio(found, layers) if (found := _ms(row.get("alone") or {}, "linears")) is not None else None,
        None if layers is None else min(layers / dense["p50_ms"], 1.0),
    )


def places(infos: Iterable[Info]) -> dict[tuple[Any, ...], list[Info]]:
    """The rows of networks, by PLACE."""
    found: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in infos:
        if section_of(info) == "networks":
            found[tuple(info[name] for name in PLACE)].append(info)
    return found


def _ms(alone: dict[str, Any], name: str) -> float | None:
    return alone.get(name, {}).get("p50_ms")


def _not_compiled(infos: Iterable[Info]) -> Iterator[str]:
    """Why some have no time compiled."""
    why: dict[str, list[str]] = defaultdict(list)
    for info in infos:
        if section_of(info) == "networks" and info.get("not_compiled"):
            why[info["not_compiled"]].append(info["label"])
    for reason, labels in why.items():
        yield f"not compiled: {', '.join(dict.fromkeys(labels))}: {reason}"
