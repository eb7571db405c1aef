"""How near what is asked about comes to what this machine can do at best, and which stage loses the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockshock.report.tables import Info
from blockshock.saved import PHASES, STAGES, section_of, sound

LEAST_N, LEAST_B = 8192, 256
"""Smaller points are bound by launches and by the collective, which the method does not own."""
TARGET = 0.85
WORST = 3
"""How many points below the target are named, of a single label; the table has them all."""
PRODUCTS = tuple(stage for stage in STAGES["products"] if stage != "layout")


def limit_lines(infos: list[Info]) -> Iterator[str]:
    """One line a phase and label, where a run has limits."""
    for section in PHASES.values():
        rows = [row for row in infos if section_of(row) == section and _judged(row)]
        automatic = {row["method"] for row in rows if _is_automatic(row)}
        labels = dict.fromkeys(row["label"] for row in rows if _is_automatic(row) or row["method"] not in automatic)
        for label in labels:
            yield _line(
                section, label, [row for row in rows if row["label"] == label], WORST if len(labels) == 1 else 1
            )


def _is_automatic(row: Info) -> bool:
    return bool(row["picks"].get("kernel", "").startswith("auto"))


def _judged(row: Info) -> bool:
    ours = row["role"] == "subject" and sound(row)
    return ours and row["N"] >= LEAST_N and row["B"] >= LEAST_B and limited(_products(row))


def limited(part: Info) -> bool:
    """Whether the limit of a pass, or of a part of it, is known: it is not where a ceiling could not be measured."""
    return part.get("of_limit") is not None and part.get("limit_ms") is not None


def _products(row: Info) -> dict[str, Any]:
    return (row.get("limits") or {}).get("products") or {}


def _line(section: str, label: str, rows: list[Info], named: int) -> str:
    shares = [_products(row)["of_limit"] for row in rows]
    reached = f"reaches {min(shares):.0%} to {max(shares):.0%} of its limit over {len(rows)} points"
    below = sorted((row for row in rows if _products(row)["of_limit"] < TARGET), key=lambda r: _products(r)["of_limit"])
    told = f"{section}, what {label} owns (N ≥ {LEAST_N}, B ≥ {LEAST_B}): {reached}"
    if not below:
        return f"{told}; nowhere below {TARGET:.0%}"
    more = "; the table has the rest" if len(below) > named else ""
    return f"{told}; below {TARGET:.0%} at {len(below)}: {'; '.join(map(_loss, below[:named]))}{more}"


def _loss(row: Info) -> str:
    """A point, and what each stage loses there: products what they take beyond the limit, layout all of it."""
    products = " + ".join(name for name in PRODUCTS if name in row["stages"])
    lost, layout = losses(row)
    optimizer = f" {row['optimizer']}" if row.get("optimizer") else ""
    return (
        f"N={row['N']} B={row['B']}{optimizer}: {_products(row)['of_limit']:.0%}, "
        f"{products} loses {lost:.4f} ms, layout {layout:.4f} ms"
    )


def losses(row: Info) -> tuple[float, float]:
    """Milliseconds that the products take beyond their limit, and all that layout takes."""
    stages = {name: times["p50_ms"] for name, times in row["stages"].items()}
    multiplying = sum(stages.get(name, 0.0) for name in PRODUCTS)
    return multiplying - _products(row)["limit_ms"], stages.get("layout", 0.0)
