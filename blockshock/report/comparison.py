"""The comparison at the end of a run: one table per phase, workload and point, one line per method, best first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.faulty import add_dense
from blockshock.report.points import Ratios
from blockshock.report.tables import (
    Cell,
    Column,
    Info,
    Table,
    columns,
    footnotes,
    loses,
    lossy,
    mark,
    mib,
    point,
    spread,
    yardsticks,
)
from blockshock.report.verdicts import verdicts
from blockshock.saved import PHASES, is_alone, or_inf, section_of, several

_BUILDS = Column("builds ±", ".1%")
_LIMIT = Column("% limit", ".0%")


def comparison(records: list[dict[str, Any]]) -> Iterator[Table]:
    """The tables.

    Args:
        records: ``{"group": …, "extra_info": …}`` of each benchmark, as ``settle.settled`` gives them.
    """
    groups: dict[str, list[Info]] = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record["extra_info"])
    ratios = Ratios([record["extra_info"] for record in records])
    for name, rows in groups.items():
        for table in _tables(name, rows, ratios):
            table.notes += footnotes(rows)
            yield table


def _tables(name: str, rows: list[Info], ratios: Ratios) -> Iterator[Table]:
    """Of one group."""
    of_kind = defaultdict(list)
    for row in rows:
        of_kind[section_of(row)].append(row)
    checked = [row for row in of_kind["accuracy"] if "error_ratio" in row]
    trained = [row for row in of_kind["accuracy"] if "worst_weight_share" in row]
    if len(of_kind[None]) == len(rows):
        yield Table(f"{name}: {len(rows)} ran untimed", PHASES.get(rows[0]["phase"], "accuracy"))
    for section in PHASES.values():
        if timed := of_kind[section]:
            yield (_steps if section == "training" else _times)(name, section, timed, ratios)
    for learns, beside in ((False, "the dense run"), (True, "what its recipe says")):
        if some := [row for row in trained if (row["promise"] == "learns") == learns]:
            yield _farthest(name, "accuracy", some, "worst_weight_share", f"of what passes from {beside}")
    if of_kind["drift"]:
        yield _farthest(name, "drift", of_kind["drift"], "worst_drift", "times the dense product's error")
    if of_kind["verdicts"]:
        yield verdicts(name, of_kind["verdicts"])
    if checked:
        yield (_accuracy if len({point(row) for row in checked}) == 1 else _worst)(name, checked)


def _worst(name: str, rows: list[Info]) -> Table:
    """For cases that cannot be compared line by line: how many there are, and the least accurate."""
    worst = max(rows, key=_error)
    workload, N, K, B, dtype = point(worst)
    where = f"{worst['label']}, {workload} {N}×{K} B={B} {dtype}"
    largest = f"largest error ÷ dense's {worst['error_ratio']:.2f}: {where}"
    same = f"same bits between ranks and runs: {sum(same_bits(row) for row in rows)}"
    return Table(f"{name}: {len(rows)}", "accuracy", notes=[largest, same])


def _farthest(name: str, section: str, rows: list[Info], key: str, what: str) -> Table:
    """For runs of many steps: how many there are, and which went farthest off."""
    worst = max(rows, key=lambda row: or_inf(row[key]))
    note = f"farthest off: {worst[key]:.2f} {what}, {worst['label']}"
    return Table(f"{name}: {several(len(rows), 'run')} of {several(worst['steps'], 'step')}", section, notes=[note])


def by_loss(row: Info) -> list[Info]:
    """A row a loss, of one that was checked for several; ``loss`` names it."""
    losses = row.get("losses")
    if not isinstance(losses, dict) or not losses:
        return [row]
    return [row | {"mean_error": None} | numbers | {"loss": loss} for loss, numbers in losses.items()]


def _error(row: Info) -> float:
    """What to rank by: NaN, of an output that holds one, is the worst."""
    return or_inf(row["error_ratio"])


def same_bits(row: Info) -> bool:
    """Whether the ranks agreed to the bit, and two runs too."""
    return bool(row["same_on_ranks"] and row["same_again"])


def _accuracy(name: str, rows: list[Info]) -> Table:
    """Errors of gradients loss by loss: those of different losses differ by orders of magnitude."""
    rows = [each for row in rows for each in by_loss(row)]
    loss = columns(loss="") if any("loss" in row for row in rows) else ()
    numbers = {"relative error": ".2e", "÷ dense's": ".2f", "max error": ".2e", "of bound": ".3f", "same bits": ""}
    table = Table(name, "accuracy", (Column("method"), *loss, *(Column(*column) for column in numbers.items())))
    for row in sorted(rows, key=lambda row: (row.get("loss", ""), _error(row))):
        errors = (row[key] for key in ("relative_error", "error_ratio", "max_error", "of_bound"))
        named = [row.get("loss")] if loss else []
        table.rows.append((row["label"] + mark(row), *named, *errors, same_bits(row)))
    return table


def _timed(name: str, section: str, rows: list[Info], ratios: Ratios, numbers: dict[str, str]) -> Table:
    ranks, device = max(row["ranks"] for row in rows), rows[0]["device"].upper()  # some of them run on one alone
    title = f"{name}, {several(ranks, f'{device} rank')}, {rows[0]['timing']}"
    first, second = (Column("step ms" if section == "training" else "p50 ms", ".4f"), Column("p95 ms", ".4f"))
    builds = [_BUILDS] if any("builds_p50_ms" in row for row in rows) else []
    limit = [_LIMIT] if any("of_limit" in row or "limits" in row for row in rows) else []
    over = (Column(f"÷ {rival}", ".2f") for rival in ("best dense", *yardsticks(rows)))
    rest = (Column(*column) for column in numbers.items())
    table = Table(title, section, (Column("method"), first, *builds, second, *over, *limit, *lossy(rows), *rest))
    ordered = sorted(rows, key=is_alone)
    if found := dict.fromkeys(best for row in ordered if (best := ratios.name(section, row))):
        table.notes.append(f"best dense: {', on one device '.join(found)}")
    without = [row for row in ordered if row["role"] == "subject" and ratios.name(section, row) is None]
    for why in dict.fromkeys(add_dense(row, rows) for row in without):
        labels = dict.fromkeys(row["label"] for row in without if add_dense(row, rows) == why)
        table.notes.append(f"no best dense for {', '.join(labels)}: {why}")
    return table


def _fastest_first(
    table: Table, section: str, rows: list[Info], ratios: Ratios
) -> Iterator[tuple[Info, tuple[Cell, ...]]]:
    """Each row, and its cells of the columns that every table of times has."""
    medians = {row["label"]: row["p50_ms"] for row in rows}
    fixed = yardsticks(rows)
    paired = []
    for row in sorted(rows, key=lambda row: row["p50_ms"]):
        best = ratios.best(section, row, rows)
        cells = (best and best[1], *(ratios.over(section, row, rival, medians.get(rival)) for rival in fixed))
        builds = [spread(row)] if _BUILDS in table.columns else []
        limit = [row.get("of_limit")] if _LIMIT in table.columns else []
        paired += [row["label"]] if ratios.paired(section, row) else []
        yield (
            row,
            (row["label"] + mark(row), row["p50_ms"], *builds, row["p95_ms"], *cells, *limit, *loses(table, row)),
        )
    if paired:
        table.notes.append(f"ratios of pairs, not of these medians: {', '.join(paired)}")


def _steps(name: str, section: str, rows: list[Info], ratios: Ratios) -> Table:
    """Of training steps: their parts, and the memory of all that is trained. Masking again counts as compressing."""
    parts = dict.fromkeys(("forward", "backward", "optimizer", "compress or refresh"), ".4f")
    table = _timed(name, section, rows, ratios, {**parts, "reduce": ".0%", "tokens/s": ",.0f", "MiB/rank": ".1f"})
    for row, cells in _fastest_first(table, section, rows, ratios):
        stages = {stage: times["p50_ms"] for stage, times in row["stages"].items()}
        packing = sum(stages.get(stage, 0.0) for stage in ("mask", "compress", "refresh"))
        parted = (row["alone"]["forward"]["p50_ms"], row["backward_p50_ms"], stages.get("optimizer", 0.0), packing)
        rest = (row["communication_share"], row["tokens_per_s"], mib(row["training_bytes"]))
        table.rows.append((*cells, *parted, *rest))
    return table


def _times(name: str, section: str, rows: list[Info], ratios: Ratios) -> Table:
    numbers = {"TFLOP/s": ".2f", "reduce": ".0%", "MiB/rank": ".1f", "eager ms": ".4f"}
    table = _timed(name, section, rows, ratios, numbers)
    for row, cells in _fastest_first(table, section, rows, ratios):
        rest = (row["dense_equivalent_tflops"], row["communication_share"], mib(row["weight_bytes"]))
        table.rows.append((*cells, *rest, row.get("cuda_events_p50_ms")))
    return table
