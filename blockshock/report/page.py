"""The report as one page: everything is in it, nothing is fetched, and it follows the reader's light or dark theme.

First what a reader came for, on a screen: the answer, the verdicts, the map. All else is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from blockshock.report.again import commands
from blockshock.report.answer import answer, verdict_table
from blockshock.report.plots import style_sheet
from blockshock.report.remarks import remarks
from blockshock.report.render import Picture
from blockshock.report.tables import Table, slug
from blockshock.saved import COMMANDS, SECTIONS, Run

MACHINE = {
    "gpus": "GPUs", "interconnect": "link", "driver": "driver", "cuda": "CUDA", "nccl": "NCCL",
    "cusparselt": "cuSPARSELt", "torch": "torch", "python": "Python", "cpu": "CPU", "cpu_cores": "CPU cores",
    "machines": "machines", "git_commit": "commit",
}  # fmt: skip
WIDEST = 400
"""Pixels of a panel that fits on a phone."""
METHOD = "method"
SAID_ONCE = ("on", "workload", "dtype", "optimizer", "loss")
"""Columns before the first number of a method that are said once, above the table, where all rows are alike in them."""


@dataclass(frozen=True)
class Chapter:
    """A run in the page: what it is, its pictures, and its tables.

    Attributes:
        most_loss: as of ``answer``.
    """

    run: Run
    pictures: list[Picture]
    tables: list[Table]
    most_loss: float | None = None


def page(chapters: list[Chapter], beside: Sequence[Table] = ()) -> str:
    """The page's text.

    Args:
        beside: what the runs say together, if there are several.
    """
    shown = [_shown(f"run{number}", chapter) for number, chapter in enumerate(chapters)]
    tables = [table_of(table, f"across{number or ''}") for number, table in enumerate(beside)]
    return _template().render(runs=shown, beside=tables, plots=Markup(style_sheet()))


@cache
def _template() -> Template:
    loader = PackageLoader("blockshock.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _shown(key: str, chapter: Chapter) -> dict[str, Any]:
    run, verdicts = chapter.run, verdict_table(chapter.run)
    sections = []
    for name, title in SECTIONS.items():
        tables = [table for table in chapter.tables if table.section == name]
        pictures = [_drawn(picture) for picture in chapter.pictures if picture.section == name]
        part = {
            "id": f"{key}-{name}",
            "title": title,
            "pictures": pictures,
            "tables": [table_of(table, f"{key}-{slug(table.title)}", run.name) for table in tables if table.columns],
            "notes": [(table.title, table.notes) for table in tables if not table.columns],
        }
        part["holds"] = ", ".join(
            f"{len(found)} {what}{'s' if len(found) > 1 else ''}"
            for what, found in (("plot", pictures), ("table", part["tables"]), ("note", part["notes"]))
            if found
        )
        sections += [part] if part["holds"] else []
    there = {part["id"] for part in sections}
    return {
        "id": key,
        "name": run.name,
        "path": str(run.path),
        "taken": run.taken[:16].replace("T", " "),
        "answer": list(answer(run, chapter.most_loss)),
        "verdicts": verdicts and table_of(verdicts, f"{key}-asked", run.name),
        "map": [_drawn(picture) for picture in chapter.pictures if not picture.section],
        "remarks": list(remarks(run)),
        "machine": _machine(run),
        "commands": list(commands(run)),
        "sections": sections,
        "missing": [(SECTIONS[name], how) for name, how in COMMANDS.items() if f"{key}-{name}" not in there],
    }


def _drawn(picture: Picture) -> dict[str, Any]:
    # One that is wider than a phone scrolls, by keyboard too.
    panels = [(Markup(panel.svg()), panel.says if panel.width > WIDEST else "") for panel in picture.panels]
    return {"name": picture.name, "title": picture.title, "caption": picture.caption, "panels": panels}


def table_of(table: Table, key: str, run: str = "") -> dict[str, Any]:
    """A table as the page shows it: narrow enough that a phone has the method and its number side by side.

    Args:
        key: in the page, its own.
        run: whose it is, for those who hear where they are.
    """
    slim, said = slimmed(table)
    return {
        "id": key,
        "file": f"{slug(table.title)}.csv",
        "title": table.title.removesuffix(f": {SECTIONS.get(table.section)}"),
        "label": " ".join(filter(None, (run, table.title))),
        "said": ", ".join(said),
        "heads": [(column.name, bool(column.format)) for column in slim.columns],
        "rows": slim.texts(),
        "notes": table.notes,
    }


def slimmed(table: Table) -> tuple[Table, list[str]]:
    """The table without what all its rows share, which is handed back in words; what else tells workloads, dtypes and
    optimizers apart goes to its end, and square layers have one size."""
    names = [column.name for column in table.columns]
    before = names.index(METHOD) if METHOD in names else 0
    while before and before < len(names) and not table.columns[before].format:
        before += 1
    order = list(range(len(names)))
    last: list[int] = []
    said: list[str] = []
    for place in range(before):
        if names[place] in SAID_ONCE:
            order.remove(place)
            found = dict.fromkeys(str(row[place]) for row in table.rows)
            if len(found) > 1:
                last.append(place)
            else:
                said += found
    columns = list(table.columns)
    if {"N", "K"} <= set(names[:before]):
        N, K = names.index("N"), names.index("K")
        if all(row[N] == row[K] for row in table.rows):
            order.remove(K)
            columns[N] = replace(columns[N], name="N = K")
    order += last
    rows = [tuple(row[place] for place in order) for row in table.rows]
    return Table(table.title, table.section, tuple(columns[place] for place in order), rows), said


def merged(tables: Iterable[Table]) -> list[Table]:
    """Tables of claims, one a claim and row, as one table of all whose columns are alike; others as they are."""
    found: dict[tuple[str, ...], Table] = {}
    others = []
    for table in tables:
        if not table.columns:
            others.append(table)
            continue
        names = tuple(column.name for column in table.columns)
        first = replace(table.columns[0], name="claim", format="")
        title = "Every verdict" if not found else f"Every verdict, {len(found) + 1}"
        whole = found.setdefault(names, Table(title, table.section, (first, *table.columns)))
        whole.rows += [(table.title, *row) for row in table.rows]
        whole.notes += [f"{table.title}: {note}" for note in table.notes]
    return [*found.values(), *others]


def _machine(run: Run) -> dict[str, str]:
    """What it ran on, each GPU once, and the seed."""
    facts = {}
    for key, name in MACHINE.items():
        if value := run.machine.get(key):
            counted = Counter(value).items() if isinstance(value, list) else [(value, 1)]
            facts[name] = ", ".join(f"{count} × {one}" if count > 1 else str(one) for one, count in counted)
    seeds = sorted({str(record["extra_info"].get("seed", "unknown")) for record in run.records})
    return facts | {"seed": ", ".join(seeds)}
