"""Whole networks: what a row takes of a pass, what it can take at best, and what its outputs are still like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from blockshock.report.faulty import NOTHING_BESIDE, add_dense
from blockshock.report.tables import Column, Info, Table, columns, footnotes, mark, mib, ratio
from blockshock.saved import LIKENESS, Run, best_dense, is_dense, or_inf, section_of, sound

PLACE = ("network", "where", "B", "dtype")
LAYERS = {"blocks": "all linear layers of its blocks", "mlp": "those of its feed-forward parts"}
ALIKE = 0.03
"""Rows whose times differ by less than this share are as fast as each other: of these the nearest to dense is named."""
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
    """One for each method that is asked about, in each network: of its fastest rows the one that is most alike; and
    what to add where that stands beside no dense row."""
    for (network, where, B, dtype), rows in places(run.infos).items():
        asked = [(row, beside(row, rows)) for row in rows if row["role"] == "subject" and sound(row)]
        timed = [(row, found) for row, found in asked if found.whole is not None]
        if any("p50_ms" in row for row, _ in asked) and not any(map(is_dense, rows)):
            yield f"{_place(network, where, B, dtype)}: {NOTHING_BESIDE}: {add_dense(asked[0][0], rows)}"
        for method in dict.fromkeys(row["method"] for row, _ in timed):
            ours = [(row, found) for row, found in timed if row["method"] == method]
            limit = min(found.whole for _, found in ours if found.whole is not None) * (1 + ALIKE)
            row, found = max(
                ((row, found) for row, found in ours if found.whole is not None and found.whole <= limit),
                key=lambda one: -or_inf(_unlike(one[0]["likeness"])),
            )
            told = f"{_place(network, where, B, dtype)}: {row['label']}, time ÷ dense {found.whole:.2f}"
            yield "; ".join([told, *_layers(found), *_like(row["likeness"])])


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


def _unlike(likeness: dict[str, float]) -> float:
    """The more, the less its outputs are those of the dense network."""
    return likeness.get("added_bits_per_byte", -likeness.get("cosine", 0.0))


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
