"""Writes the numbers of README.md from the saved runs that it names: `python docs/readme_numbers.py`.

A block of the README begins with `<!-- numbers: TABLE RUN -->` and ends with `<!-- end -->`. TABLE is one of TABLES,
RUN lies in `benchmark_results/official`. What stands between is replaced. A test holds the README to its runs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockshock.errors import InputError, UnknownName
from blockshock.report.answer import answer
from blockshock.report.points import Ratios, against_best
from blockshock.report.remarks import remarks
from blockshock.report.tables import spread
from blockshock.saved.judged import best_dense
from blockshock.saved.results import Run, read_run
from blockshock.saved.sections import section_of

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- numbers: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Info = dict[str, Any]


def written(readme: str) -> str:
    """The README with every block of numbers made anew.

    Raises:
        InputError: a block has no name of a table and a run, or no end.
        UnknownName: there is no such table.
        NotARun: there is no such run.
    """
    if readme.count("<!-- numbers:") != len(BLOCK.findall(readme)):
        raise InputError("a block of numbers begins with `<!-- numbers: TABLE RUN -->` and ends with `<!-- end -->`")

    def block(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise UnknownName(f"the README asks for a table of numbers {match[2]!r}, and there are {', '.join(TABLES)}")
        run = read_run(ROOT / "benchmark_results" / "official" / match[3])
        return match[1] + "\n".join(TABLES[match[2]](run)) + "\n" + match[4]

    return BLOCK.sub(block, readme)


def _answer(run: Run) -> Iterator[str]:
    yield from (f"- {line}" for line in (*answer(run), *remarks(run)))


def _verdicts(run: Run) -> Iterator[str]:
    """A line for each hypothesis and row: the range of its ratios, and at how many points it is what."""
    found: dict[tuple[str, ...], list[Info]] = defaultdict(list)
    for info in run.infos:
        if "verdict" in info and not info.get("wrong"):
            trained = f", {info['optimizer']}" if info.get("optimizer") and info.get("storage") else ""
            found[info["hypothesis"], info["statement"], info["label"] + trained].append(info)
    lossy = any("loses" in info for infos in found.values() for info in infos)
    yield from _header("hypothesis", "row", "ratio", "verdict", "rivals", *(["loses"] if lossy else []))
    told = ""
    for (name, statement, label), infos in sorted(found.items()):
        ratios = [info["ratio"] for info in infos]
        verdicts = Counter(info["verdict"] for info in infos).most_common()
        rivals = Counter(info["rival"] for info in infos).most_common()
        yield _line(
            "" if told == name else f"**{name}** {statement}",
            f"`{label}`",
            f"{min(ratios):.2f}–{max(ratios):.2f}",
            ", ".join(f"{verdict} at {count}" for verdict, count in verdicts),
            ", ".join(rival for rival, _ in rivals),
            *([_loses(infos)] if lossy else []),
        )
        told = name


def _timed(section: str, labels: tuple[str, ...]) -> Callable[[Run], Iterator[str]]:
    """Of each point the best dense row and Block-Shock's, ms, with the spread over builds; and their ratios."""

    def table(run: Run) -> Iterator[str]:
        points, ratios = _points(run, section, ("workload", "N", "K", "B", "optimizer")), Ratios(run.infos)
        yield from _header("N × K", "B", "best dense", "ms", *(cell for label in labels for cell in (label, "÷")))
        for (workload, N, K, B, optimizer), infos in sorted(points.items()):
            best = best_dense(infos)
            if best is None:
                continue
            cells = [_size(workload, N, K), f"{B} {optimizer}".strip()]
            cells += [best["label"], _ms(best)]
            for label in labels:
                ours = [info for info in infos if info["label"] == label]
                over = ratios.best(section, ours[0], infos) if ours else None
                cells += [_ms(ours[0]), f"{over[1]:.2f}"] if over else ["–", "–"]
            yield _line(*cells)

    return table


def _fastest(run: Run) -> Iterator[str]:
    """Of each point and method that is asked about the fastest row, the best dense one, and what the former loses."""
    yield from _header("N × K", "B", "dtype", "best dense", "ms", "fastest", "ms", "÷", "loses")
    points = _points(run, "forward", ("workload", "N", "K", "B", "dtype"))
    for one in sorted(against_best(run), key=lambda one: (one.workload, one.N, one.K, one.B, one.dtype)):
        rows = {info["label"]: info for info in points[one.workload, one.N, one.K, one.B, one.dtype]}
        if one.section == "forward" and {one.label, one.rival} <= rows.keys():
            ours, best = rows[one.label], rows[one.rival]
            cells = [_size(one.workload, one.N, one.K), one.B, one.dtype, one.rival, _ms(best), f"`{one.label}`"]
            yield _line(*cells, _ms(ours), f"{one.ratio:.2f}", _loses([ours]))


def _points(run: Run, section: str, keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[Info]]:
    points: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in run.infos:
        if section_of(info) == section:
            points[tuple(info.get(key) or "" for key in keys)].append(info)
    return points


def _size(workload: str, N: int, K: int) -> str:
    size = f"{N}²" if N == K else f"{N}×{K}"
    return " ".join(filter(None, [size, workload.replace("gaussian", "")]))


def _loses(infos: list[Info]) -> str:
    """What the output loses, a dash where it is the dense weight's."""
    errors = [f"{info['loses']['output_error']:.3f}" for info in infos if "loses" in info]
    return "–".join(dict.fromkeys((min(errors), max(errors)))) if errors else "–"


def _ms(info: Info) -> str:
    """The median, and how far those of its builds lie from the middle between them."""
    builds = spread(info)
    return f"{info['p50_ms']:.4f}" if builds is None else f"{info['p50_ms']:.4f} ± {builds:.1%}"


def _header(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield _line(*("---" for _ in names))


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


TABLES: dict[str, Callable[[Run], Iterator[str]]] = {
    "answer": _answer,
    "verdicts": _verdicts,
    "forward": _timed(
        "forward", ("block_shock gathered 1100", "block_shock cusparselt 1100", "masked_split_dense 1100")
    ),
    "fastest": _fastest,
    "training": _timed("training", ("block_shock gathered 1100 compressed", "block_shock cusparselt tile compressed")),
}

if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
