"""The report as one page: everything is in it, nothing is fetched, and it follows the reader's light or dark theme."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from blockshock.report.again import commands
from blockshock.report.answer import answer
from blockshock.report.limits import limit_lines
from blockshock.report.plots.style import GRID, INK, MUTED, PAPER, TITLE_HEIGHT
from blockshock.report.remarks import remarks
from blockshock.report.render import Missing, Picture
from blockshock.report.tables import Table
from blockshock.saved import COMMANDS, SECTIONS, Run

THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "none"}
"""What the plots draw in these colours follows the page's theme."""
MACHINE = {
    "gpus": "GPUs", "interconnect": "link", "driver": "driver", "cuda": "CUDA", "nccl": "NCCL",
    "cusparselt": "cuSPARSELt", "torch": "torch", "python": "Python", "cpu": "CPU", "cpu_cores": "CPU cores",
    "machines": "machines", "git_commit": "commit",
}  # fmt: skip


@dataclass(frozen=True)
class Chapter:
    """A run in the page: what it is, its pictures, what they lack, and its tables: over all points, and of each."""

    run: Run
    pictures: list[Picture]
    missing: list[Missing]
    tables: list[Table]
    details: list[Table]


def page(chapters: list[Chapter], across: Table | None, picture: Picture | None) -> str:
    """The page's text.

    Args:
        across: the table that compares the runs, if there are several; ``picture`` its plot.
    """
    shown = [_shown(number, chapter) for number, chapter in enumerate(chapters)]
    return _template().render(runs=shown, across=across, picture=picture)


@cache
def _template() -> Template:
    loader = PackageLoader("blockshock.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = inline
    return environment.get_template("report.html.j2")


def _shown(number: int, chapter: Chapter) -> dict[str, Any]:
    run = chapter.run
    sections = [
        {
            "id": f"run{number}-{key}",
            "title": title,
            "pictures": [picture for picture in chapter.pictures if picture.section == key],
            "tables": [table for table in chapter.tables if table.section == key],
            "details": [table for table in chapter.details if table.section == key],
        }
        for key, title in SECTIONS.items()
    ]
    return {
        "id": f"run{number}",
        "name": run.name,
        "path": str(run.path),
        "taken": run.taken[:16].replace("T", " "),
        "answer": list(answer(run)),
        "remarks": list(remarks(run)),
        "limits": list(limit_lines(run.infos)),
        "machine": _machine(run),
        "commands": list(commands(run)),
        "sections": [part for part in sections if part["pictures"] or part["tables"] or part["details"]],
        "missing": _missing(chapter),
    }


def _machine(run: Run) -> dict[str, str]:
    """What it ran on, each GPU once, and the seed."""
    facts = {}
    for key, name in MACHINE.items():
        if value := run.machine.get(key):
            counted = Counter(value).items() if isinstance(value, list) else [(value, 1)]
            facts[name] = ", ".join(f"{count} × {one}" if count > 1 else str(one) for one, count in counted)
    seeds = sorted({str(record["extra_info"].get("seed", "unknown")) for record in run.records})
    return facts | {"seed": ", ".join(seeds)}


def _missing(chapter: Chapter) -> list[tuple[str, str]]:
    """What is not there, and the command that measures it; of a section without results just the section."""
    found = []
    for section, command in COMMANDS.items():
        lacking = [missing for missing in chapter.missing if missing.section == section]
        shown = {part.section for part in chapter.pictures} | {
            part.section for part in chapter.tables + chapter.details
        }
        if section not in shown:
            found.append((SECTIONS[section], command))
        else:
            found += [(f"{missing.title}: {SECTIONS[section]}", missing.command) for missing in lacking]
    return found


def inline(picture: Picture) -> Markup:
    """The plot as an element of the page: no title strip, its colours the theme's, its ids no other plot's."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r'<g id="title">.*?</g>', "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    for colour, themed in THEMED.items():
        svg = svg.replace(colour, themed)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{picture.name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{picture.name}-", svg)
    svg = re.sub(r"font: ([\w ]*?)([\d.]+px) [^;\"]+", r"font: \1\2 var(--sans)", svg)
    return Markup(re.sub(r"<svg [^>]*>", lambda m: _opening(m[0], picture), svg, count=1))


def _opening(tag: str, picture: Picture) -> str:
    """The svg element itself, without the strip of its title; it grows and shrinks with the page."""
    sizes = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)
    assert sizes is not None
    strip = TITLE_HEIGHT * 72
    box = f"0 {strip:g} {float(sizes[1]):g} {float(sizes[2]) - strip:g}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    label = Markup("{}").format(picture.title + ". " + picture.caption)
    return f'<svg viewBox="{box}" {spaces} role="img" aria-label="{label}">'
