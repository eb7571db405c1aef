"""The comparison at the end of a run: one table per phase, workload and point, one line per method, best first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.sections import PHASES, section_of
from blockshock.report.tables import (
    RIVALS,
    Cell,
    Column,
    Info,
    Table,
    columns,
    footnotes,
    mark,
    mib,
    or_inf,
    point,
    ratio,
)

_RATIOS = (Column("÷ tp row", ".2f"), Column("÷ single", ".2f"))
_LIMIT = Column("% limit", ".0%")


def comparison(records: list[dict[str, Any]]) -> Iterator[Table]:
    """The tables.

    Args:
        records: ``{"group": …, "extra_info": …}`` of each benchmark, as pytest-benchmark saves them.
    """
    groups: dict[str, list[Info]] = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record["extra_info"])
    for name, rows in groups.items():
        for table in _tables(name, rows):
            table.notes += footnotes(rows)
            yield table


def _tables(name: str, rows: list[Info]) -> Iterator[Table]:
    """Of one group."""
    of_kind = defaultdict(list)
    for row in rows:
        of_kind[section_of(row)].append(row)
    checked = [row for row in of_kind["accuracy"] if "error_ratio" in row]
    trained = [row for row in of_kind["accuracy"] if "worst_weight_share" in row]
    if len(of_kind[None]) == len(rows):
        yield Table(f"{name}: {len(rows)} ran untimed", PHASES.get(rows[0]["phase"], "accuracy"))
    for section in ("forward", "backward", "training"):
        if timed := of_kind[section]:
            yield (_steps if section == "training" else _times)(name, section, timed)
    if trained:
        yield _farthest(name, "accuracy", trained, "worst_weight_share", "of what passes from the dense run")
    if of_kind["drift"]:
        yield _farthest(name, "drift", of_kind["drift"], "worst_drift", "times the dense product's error")
    if of_kind["verdicts"]:
        yield _verdicts(name, of_kind["verdicts"])
    if checked:
        yield (_accuracy if len({point(row) for row in checked}) == 1 else _worst)(name, checked)


def _worst(name: str, rows: list[Info]) -> Table:
    """For cases that cannot be compared line by line: how many there are, and the least accurate."""
    worst = max(rows, key=_error)
    workload, N, K, B, dtype = point(worst)
    where = f"{worst['label']}, {workload} {N}×{K} B={B} {dtype}"
    largest = f"largest error {worst['error_ratio']:.2f} × dense's: {where}"
    same = f"same bits between ranks and runs: {sum(same_bits(row) for row in rows)}"
    return Table(f"{name}: {len(rows)}", "accuracy", notes=[largest, same])


def _farthest(name: str, section: str, rows: list[Info], key: str, what: str) -> Table:
    """For runs of many steps: how many there are, and which went farthest off."""
    worst = max(rows, key=lambda row: or_inf(row[key]))
    note = f"farthest off: {worst[key]:.2f} {what}, {worst['label']}"
    return Table(f"{name}: {len(rows)} runs of {worst['steps']} steps", section, notes=[note])


def _verdicts(name: str, rows: list[Info]) -> Table:
    """One hypothesis about one kernel: the ratio at each point, and at how many it holds."""
    shown = columns(workload="", N="d", K="d", B="d", dtype="", ratio=".3f")
    table = Table(f"{name}: {rows[0]['statement']}", "verdicts", (*shown, Column("95 % interval"), Column("verdict")))
    for row in rows:
        interval = f"{row['ratio_low']:.3f} – {row['ratio_high']:.3f}"
        table.rows.append((*point(row), row["ratio"], interval, row["verdict"] + mark(row)))
    counts = Counter(row["verdict"] for row in rows)
    found = ", ".join(f"{verdict} at {count}" for verdict, count in counts.most_common())
    table.notes.append(f"of {len(rows)} points {found} (margin {rows[0]['margin']:.0%})")
    return table


def _error(row: Info) -> float:
    """What to rank by: NaN, of an output that holds one, is the worst."""
    return or_inf(row["error_ratio"])


def same_bits(row: Info) -> bool:
    """Whether the ranks agreed to the bit, and two runs too."""
    return bool(row["same_on_ranks"] and row["same_again"])


def _accuracy(name: str, rows: list[Info]) -> Table:
    numbers = {"relative error": ".2e", "÷ dense's": ".2f", "max error": ".2e", "of bound": ".3f", "same bits": ""}
    table = Table(name, "accuracy", (Column("method"), *(Column(*column) for column in numbers.items())))
    for row in sorted(rows, key=_error):
        errors = (row[key] for key in ("relative_error", "error_ratio", "max_error", "of_bound"))
        table.rows.append((row["label"] + mark(row), *errors, same_bits(row)))
    return table


def _timed(name: str, section: str, rows: list[Info], numbers: dict[str, str]) -> Table:
    title = f"{name}, {rows[0]['ranks']} {rows[0]['device'].upper()} ranks, {rows[0]['timing']}"
    first, second = (Column("step ms" if section == "training" else "p50 ms", ".4f"), Column("p95 ms", ".4f"))
    limit = [_LIMIT] if any("of_limit" in row for row in rows) else []
    rest = (Column(*column) for column in numbers.items())
    return Table(title, section, (Column("method"), first, second, *_RATIOS, *limit, *rest))


def _fastest_first(table: Table, rows: list[Info]) -> Iterator[tuple[Info, tuple[Cell, ...]]]:
    """Each row, and its cells of the columns that every table of times has."""
    medians = {row["label"]: row["p50_ms"] for row in rows}
    for row in sorted(rows, key=lambda row: row["p50_ms"]):
        ratios = (ratio(row["p50_ms"], medians.get(rival)) for rival in RIVALS)
        limit = [row.get("of_limit")] if _LIMIT in table.columns else []
        yield row, (row["label"] + mark(row), row["p50_ms"], row["p95_ms"], *ratios, *limit)


def _steps(name: str, section: str, rows: list[Info]) -> Table:
    """Of training steps: their parts, and the memory of all that is trained. Masking again counts as compressing."""
    parts = dict.fromkeys(("forward", "backward", "optimizer", "compress or refresh"), ".4f")
    table = _timed(name, section, rows, {**parts, "reduce": ".0%", "tokens/s": ",.0f", "MiB/rank": ".1f"})
    for row, cells in _fastest_first(table, rows):
        stages = {stage: times["p50_ms"] for stage, times in row["stages"].items()}
        packing = sum(stages.get(stage, 0.0) for stage in ("mask", "compress", "refresh"))
        parted = (row["alone"]["forward"]["p50_ms"], row["backward_p50_ms"], stages.get("optimizer", 0.0), packing)
        rest = (row["communication_share"], row["tokens_per_s"], mib(row["training_bytes"]))
        table.rows.append((*cells, *parted, *rest))
    return table


def _times(name: str, section: str, rows: list[Info]) -> Table:
    numbers = {"TFLOP/s": ".2f", "reduce": ".0%", "MiB/rank": ".1f", "eager ms": ".4f"}
    table = _timed(name, section, rows, numbers)
    for row, cells in _fastest_first(table, rows):
        rest = (row["dense_equivalent_tflops"], row["communication_share"], mib(row["weight_bytes"]))
        table.rows.append((*cells, *rest, row.get("cuda_events_p50_ms")))
    return table
