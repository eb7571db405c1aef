"""The comparison at the end of a run: one table per phase, workload and point, one line per method, best first."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table

Info = dict[str, Any]
WIDTH = 1000
"""Of the console, more than any table needs: rich cuts columns that do not fit, a terminal or a log loses none."""


def print_comparison(records: list[dict[str, Any]], file: IO[str], markdown: bool = False) -> None:
    """Print the tables.

    Args:
        records: ``{"group": …, "extra_info": …}`` of each benchmark, as pytest-benchmark saves them.
        markdown: print them to be pasted, not to be read in a terminal.
    """
    console = Console(file=file, width=WIDTH, highlight=False, markup=False, emoji=False)
    groups: dict[str, list[Info]] = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record["extra_info"])
    for name, rows in groups.items():
        kinds = ("p50_ms", "error_ratio", "worst_weight_share", "worst_drift", "verdict")
        timed, checked, trained, fed_back, judged = ([row for row in rows if key in row] for key in kinds)
        if not any(key in row for row in rows for key in kinds):
            console.print(f"{name}: {len(rows)} ran untimed\n", style="bold")
        if timed:
            show(console, (_step_table if "update_p50_ms" in timed[0] else _time_table)(name, timed), markdown)
        if trained:
            _print_farthest(console, name, trained, "worst_weight_share", "of what passes from the dense run")
        if fed_back:
            _print_farthest(console, name, fed_back, "worst_drift", "times the dense product's error")
        if judged:
            _print_verdicts(console, name, judged, markdown)
        if len({_point(row) for row in checked}) == 1:
            show(console, _accuracy_table(name, checked), markdown)
        elif checked:
            _print_worst(console, name, checked)


def show(console: Console, table: Table, markdown: bool) -> None:
    """Print a table, its title as a line of its own."""
    title, table.title = table.title, None
    if title:
        console.print(f"### {title}\n" if markdown else str(title), style=None if markdown else "bold")
    table.box, table.pad_edge = (box.MARKDOWN, True) if markdown else (box.SIMPLE_HEAD, False)
    console.print(table)
    if markdown:
        console.print()


def _point(row: Info) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("workload", "N", "K", "B", "dtype"))


def _print_worst(console: Console, name: str, rows: list[Info]) -> None:
    """For cases that cannot be compared line by line: how many there are, and the least accurate."""
    worst = max(rows, key=_error)
    workload, N, K, B, dtype = _point(worst)
    console.print(f"{name}: {len(rows)}", style="bold")
    console.print(
        f"  largest error {worst['error_ratio']:.2f} × dense's: {worst['label']}, {workload} {N}×{K} B={B} {dtype}"
    )
    console.print(f"  same bits between ranks and runs: {sum(_same_bits(row) for row in rows)}\n")


def _print_farthest(console: Console, name: str, rows: list[Info], key: str, what: str) -> None:
    """For runs of many steps: how many there are, and which went farthest off."""
    worst = max(rows, key=lambda row: or_inf(row[key]))
    console.print(f"{name}: {len(rows)} runs of {worst['steps']} steps", style="bold")
    console.print(f"  farthest off: {worst[key]:.2f} {what}, {worst['label']}\n")


def _print_verdicts(console: Console, name: str, rows: list[Info], markdown: bool) -> None:
    """One hypothesis about one kernel: the ratio at each point, and at how many it holds."""
    columns = ("N", "K", "B", "dtype", "ratio", "95 % interval", "verdict")
    table = _table(f"{name}: {rows[0]['statement']}", "workload", *columns)
    for row in rows:
        interval = f"{row['ratio_low']:.3f} – {row['ratio_high']:.3f}"
        table.add_row(*map(str, _point(row)), f"{row['ratio']:.3f}", interval, row["verdict"])
    show(console, table, markdown)
    counts = Counter(row["verdict"] for row in rows)
    found = ", ".join(f"{verdict} at {count}" for verdict, count in counts.most_common())
    console.print(f"  of {len(rows)} points {found} (margin {rows[0]['margin']:.0%})\n")


def _error(row: Info) -> float:
    """What to rank by: NaN, of an output that holds one, is the worst."""
    return or_inf(row["error_ratio"])


def or_inf(number: float) -> float:
    """What to rank a number by: NaN is the worst."""
    return math.inf if math.isnan(number) else number


def _same_bits(row: Info) -> bool:
    return bool(row["same_on_ranks"] and row["same_again"])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _accuracy_table(name: str, rows: list[Info]) -> Table:
    table = _table(name, "method", "relative error", "÷ dense's", "max error", "of bound", "same bits")
    for row in sorted(rows, key=_error):
        table.add_row(
            row["label"],
            f"{row['relative_error']:.2e}",
            f"{row['error_ratio']:.2f}",
            f"{row['max_error']:.2e}",
            f"{row['of_bound']:.3f}",
            "yes" if _same_bits(row) else "NO",
        )
    return table


def _titled(name: str, timed: list[Info]) -> str:
    return f"{name}, {timed[0]['ranks']} {timed[0]['device'].upper()} ranks, {timed[0]['timing']}"


def _step_table(name: str, timed: list[Info]) -> Table:
    """Of training steps: their parts, and the memory of all that is trained. Masking again counts as compressing."""
    columns = ("step ms", "p95 ms", "÷ tp row", "÷ single", "forward", "backward", "optimizer", "compress or refresh")
    table = _table(_titled(name, timed), "method", *columns, "reduce", "tokens/s", "MiB/rank")
    medians = {row["label"]: row["p50_ms"] for row in timed}
    for row in sorted(timed, key=lambda row: row["p50_ms"]):
        stages = {stage: times["p50_ms"] for stage, times in row["stages"].items()}
        table.add_row(
            row["label"],
            f"{row['p50_ms']:.4f}",
            f"{row['p95_ms']:.4f}",
            *(_ratio(row["p50_ms"], medians.get(base)) for base in ("dense_tp_row", "dense_single")),
            f"{row['alone']['forward']['p50_ms']:.4f}",
            f"{row['backward_p50_ms']:.4f}",
            f"{stages.get('optimizer', 0.0):.4f}",
            f"{sum(stages.get(stage, 0.0) for stage in ('mask', 'compress', 'refresh')):.4f}",
            f"{row['communication_share']:.0%}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['training_bytes'] / 2**20:.1f}",
        )
    return table


def _time_table(name: str, timed: list[Info]) -> Table:
    table = _table(
        _titled(name, timed),
        "method",
        "p50 ms",
        "p95 ms",
        "÷ tp row",
        "÷ single",
        "TFLOP/s",
        "reduce",
        "MiB/rank",
        "eager ms",
    )
    medians = {row["label"]: row["p50_ms"] for row in timed}
    for row in sorted(timed, key=lambda row: row["p50_ms"]):
        table.add_row(
            row["label"],
            f"{row['p50_ms']:.4f}",
            f"{row['p95_ms']:.4f}",
            *(_ratio(row["p50_ms"], medians.get(base)) for base in ("dense_tp_row", "dense_single")),
            f"{row['dense_equivalent_tflops']:.2f}",
            f"{row['communication_share']:.0%}",
            f"{row['weight_bytes'] / 2**20:.1f}",
            f"{row['cuda_events_p50_ms']:.4f}" if "cuda_events_p50_ms" in row else "–",
        )
    return table


def _ratio(value: float, base: float | None) -> str:
    return "–" if not base else f"{value / base:.2f}"
