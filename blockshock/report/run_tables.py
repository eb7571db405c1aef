"""Tables over all points of a run: time over the best dense, stages, limits, memory, accuracy, operations, ceilings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from blockshock.report.comparison import by_loss, same_bits
from blockshock.report.growth import growth
from blockshock.report.learning import learning_tables
from blockshock.report.limits import limit_lines
from blockshock.report.networks import network_tables
from blockshock.report.points import Ratios
from blockshock.report.tables import (
    Cell,
    Column,
    Info,
    Table,
    columns,
    footnotes,
    known,
    loses,
    lossy,
    mark,
    mib,
    point,
    spread,
    yardsticks,
)
from blockshock.saved import PHASES, SECTIONS, Run, halves, is_alone, is_dense, or_inf, qualities, section_of

LONGEST_NAME = 72
_POINT = columns(workload="", N="d", K="d", B="d", dtype="")
_BYTES = {
    "weights": "weight_bytes",
    "weights, estimated": "estimated_weight_bytes",
    "peak": "steady_peak_bytes",
    "peak while building": "building_peak_bytes",
    "copied by layout": "layout_copied_bytes",
    "parameters": "parameter_bytes",
    "gradients": "gradient_bytes",
    "optimizer state": "state_bytes",
    "all that is trained": "training_bytes",
}


def run_tables(run: Run) -> Iterator[Table]:
    """The tables, of those sections of which the run has results; first what the answer rests on, then the short."""
    rows, ratios = run.infos, Ratios(run.infos)
    timed = {section: [row for row in rows if section_of(row) == section] for section in PHASES.values()}
    yield from (_over_dense(section, found, ratios) for section, found in timed.items() if found)
    yield from network_tables(rows)
    yield from learning_tables(rows)
    yield from _quality([*qualities(rows), *halves(rows)])
    if near := list(limit_lines(rows)):
        yield Table("How near to the limit", "machine", notes=near)
    if ceilings := run.machine.get("ceilings"):
        yield _ceilings(ceilings)
    yield from _drift([row for row in rows if section_of(row) == "drift"])
    for section, found in timed.items():
        for build in (_stages, _limits, growth, _memory, _operations) if found else ():
            yield from build(section, found)
    yield from _accuracy([row for row in rows if "error_ratio" in row])


def _over_points(title: str, section: str, rows: list[Info], rest: tuple[Column, ...]) -> tuple[Table, list[Info]]:
    """A table that names point and method first, and the rows in its order: by point, then the fastest first."""
    trained = columns(optimizer="") if any(row.get("optimizer") for row in rows) else ()
    ordered = sorted(rows, key=lambda row: (*map(str, _place(row)[:1]), *_place(row)[1:], row.get("p50_ms", 0.0)))
    shown = (*_POINT, *trained, Column("method"), *rest)
    return Table(f"{title}: {SECTIONS[section]}", section, shown, notes=footnotes(rows)), ordered


def _place(row: Info) -> tuple[Any, ...]:
    return (*point(row), row.get("optimizer") or "")


def _named(table: Table, row: Info) -> tuple[Cell, ...]:
    # By its place: a stage may be called optimizer too.
    trained = [row.get("optimizer")] if table.columns[len(_POINT)].name == "optimizer" else []
    return (*point(row), *trained, row["label"] + mark(row))


def _stages(section: str, rows: list[Info]) -> Iterator[Table]:
    names = list(dict.fromkeys(stage for row in rows for stage in row["stages"]))
    rest = tuple(Column(name, ".4f") for name in ("p50", *names))
    table, ordered = _over_points("Time by stage, ms", section, rows, rest)
    for row in ordered:
        stages = (row["stages"].get(name, {}).get("p50_ms") for name in names)
        table.rows.append((*_named(table, row), row["p50_ms"], *stages))
    table.notes.append("stages are timed in rounds of their own: their sum is not p50")
    yield table


def _over_dense(section: str, rows: list[Info], ratios: Ratios) -> Table:
    names = yardsticks(rows)
    shown = (Column("p50 ms", ".4f"), Column("builds ±", ".1%"), Column("÷ best dense", ".2f"), Column("best dense"))
    rest = (*shown, *(Column(f"÷ {rival}", ".2f") for rival in names), Column("paired"), *lossy(rows))
    table, ordered = _over_points("Time over the best dense", section, rows, rest)
    medians = {(_place(row), row["label"]): row["p50_ms"] for row in rows}
    at: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for row in rows:
        at[_place(row)].append(row)
    for row in ordered:
        rival, best = ratios.best(section, row, at[_place(row)]) or (None, None)
        fixed = (ratios.over(section, row, name, medians.get((_place(row), name))) for name in names)
        paired = "yes" if ratios.paired(section, row) else ""
        cells = (row["p50_ms"], spread(row), best, rival, *fixed, paired, *loses(table, row))
        table.rows.append((*_named(table, row), *cells))
    table.notes.append("below 1: faster than that method at the same point. Paired: not the ratio of these medians")
    if dense := list(dict.fromkeys(row["label"] for row in filter(is_dense, rows))):
        told = f"best dense: of {', '.join(dense)}, less what is wrong, the fastest there"
        alone = "; for a row on one device of those on one" if len(dense) > 1 and any(map(is_alone, rows)) else ""
        table.notes.append(f"{told}, as pairs found it where they looked for it, else by these medians{alone}")
    return table


def _limits(section: str, rows: list[Info]) -> Iterator[Table]:
    shown = [row for row in rows if "of_limit" in row or "limits" in row]
    if not shown:
        return
    parts = [part for part in ("products", "communication", "update") if any(part in _parts(row) for row in shown)]
    numbers = [("p50 ms", ".4f"), ("limit ms", ".4f"), ("% limit", ".0%"), ("bound by", "")]
    for part in parts:
        numbers += [(f"{part} ms", ".4f"), (f"limit of {part} ms", ".4f"), (f"% limit of {part}", ".0%")]
    table, ordered = _over_points("Share of the limit", section, shown, tuple(Column(*number) for number in numbers))
    keys = ("p50_ms", "limit_ms", "of_limit")
    for row in ordered:
        cells = [*(row.get(key) for key in keys), row.get("bound_by")]
        cells += [_parts(row).get(part, {}).get(key) for part in parts for key in keys]
        table.rows.append((*_named(table, row), *cells))
    table.notes.append("the limit is the time that no implementation can beat on this machine; % limit is of the whole")
    if parts:
        table.notes.append("a part's time is that of its stages, in rounds of their own, and at most the whole")
    yield table


def _parts(row: Info) -> dict[str, Any]:
    return row.get("limits") or {}


def _memory(section: str, rows: list[Info]) -> Iterator[Table]:
    kept = {name: key for name, key in _BYTES.items() if any(key in row for row in rows)}
    table, ordered = _over_points(
        "Memory of the fullest rank, MiB", section, rows, tuple(Column(name, ",.1f") for name in kept)
    )
    table.rows = [(*_named(table, row), *(mib(row.get(key)) for key in kept.values())) for row in ordered]
    yield table


def _operations(section: str, rows: list[Info]) -> Iterator[Table]:
    """Kernels and collectives of what ran under the profiler."""
    profiled = [row for row in rows if row.get("kernels")]
    if not profiled:
        return
    rest = (Column("operation"), Column("kind"), Column("calls", "d"), Column("ms", ".4f"), Column("share", ".1%"))
    table, ordered = _over_points("Operations", section, profiled, rest)
    for row in ordered:
        for done in row["kernels"]:
            cells = (done.get(key) for key in ("kind", "calls", "ms", "share"))
            table.rows.append((*_named(table, row), short_name(done["name"]), *cells))
    traces = [str(trace) for row in profiled for trace in row.get("traces") or ()]
    if traces:
        table.notes.append(f"traces: {', '.join(traces)}")
    yield table


def short_name(kernel: str) -> str:
    """A kernel without its C++ arguments, but with what an elementwise one does: those are all of one name."""
    name, _, arguments = kernel.removeprefix("void ").replace("(anonymous namespace)::", "").partition("<")
    does = re.search(r"\w+(?:_kernel_cuda|_kernel_impl|Functor)\b|\w+(?<!unrolled)_kernel\b", arguments)
    short = f"{name.partition('(')[0].strip()}{f' {does[0]}' if does else ''}"
    return short if len(short) <= LONGEST_NAME else f"{short[: LONGEST_NAME - 1]}…"


def _accuracy(rows: list[Info]) -> Iterator[Table]:
    by_phase: dict[int, list[Info]] = defaultdict(list)
    for row in rows:
        by_phase[row["phase"]].append(row)
    keys = ("relative_error", "error_ratio", "max_error", "mean_error", "of_bound")
    forms: dict[str, str] = {"relative": ".2e", "÷ dense's": ".2f", "max": ".2e", "mean": ".2e", "of bound": ".3f"}
    for phase, checked in by_phase.items():
        what = "Errors of grad_X against float64" if phase == 2 else "Errors against float64"
        each = [part for row in checked for part in by_loss(row)]
        loss = columns(loss="") if any("loss" in row for row in each) else ()
        rest = (*loss, *(Column(*form) for form in forms.items()), Column("same bits"))
        table, ordered = _over_points(what, "accuracy", each, rest)
        for row in ordered:
            named = [row.get("loss")] if loss else []
            table.rows.append((*_named(table, row), *named, *(row.get(key) for key in keys), same_bits(row)))
        yield table


def _quality(rows: list[Info]) -> Iterator[Table]:
    """What rows with weights of their own lose, and halves by themselves, least first."""
    if rows:
        rest = {"output error": ".3f", "kept magnitude": ".3f", "kept energy": ".3f"}
        table, ordered = _over_points(
            "What weights of their own lose", "accuracy", rows, tuple(Column(*column) for column in rest.items())
        )
        for row in sorted(ordered, key=lambda row: (*point(row), or_inf(row["quality"]["output_error"]))):
            cells = (known(row["quality"][name.replace(" ", "_")]) for name in rest)
            table.rows.append((*_named(table, row), *cells))
        table.notes.append("output error: against the dense weight, on inputs that nothing was chosen by")
        yield table


def _drift(rows: list[Info]) -> Iterator[Table]:
    if rows:
        rest = (Column("steps", "d"), Column("worst ratio to dense", ".2f"), Column("last relative error", ".2e"))
        table, ordered = _over_points("Fed back to itself", "drift", rows, rest)
        for row in sorted(ordered, key=lambda row: or_inf(row["worst_drift"])):
            last = (row.get("relative_error") or [None])[-1]
            table.rows.append((*_named(table, row), row["steps"], row["worst_drift"], last))
        yield table


def _ceilings(ceilings: dict[str, Any]) -> Table:
    """What this machine was measured to be able to do."""
    table = Table("Measured ceilings", "machine", (Column("what"), Column("measured", ",.1f"), Column("unit")))
    units: dict[str, tuple[str, Callable[[float], float]]] = {
        "memory_bytes_per_s": ("GB/s", lambda value: value / 1e9),
        "bytes_per_s": ("GB/s", lambda value: value / 1e9),
        "cache_bytes": ("MiB", lambda value: value / 2**20),
        "latency_s": ("µs", lambda value: value * 1e6),
        "launch_s": ("µs", lambda value: value * 1e6),
    }
    for name, value in ceilings.items():
        for detail, number in (value if isinstance(value, dict) else {"": value}).items():
            unit, scaled = units.get(detail) or units.get(name) or ("TFLOP/s", lambda value: value / 1e12)
            what = f"{name} {detail.replace('bytes_per_s', 'bandwidth')}".strip()
            for suffix in ("_bytes_per_s", "_flops_per_s", "_bytes", "_s"):
                what = what.removesuffix(suffix).replace(f"{suffix} ", " ")
            known = number is not None
            table.rows.append((what.replace("_", " "), scaled(number) if known else None, unit if known else None))
    if not ceilings.get("sparse_flops_per_s"):
        table.notes.append("no rate of sparse tensor cores: this machine has none that could be measured")
    return table
