"""The roofline: what one rank's products reach, against what memory and multipliers of this machine allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockshock.report.plots.lines import BOTTOM, LEFT, TOP, WIDTH, Ranks
from blockshock.report.plots.scales import drawable, over, that_fit
from blockshock.report.plots.style import Styles
from blockshock.report.plots.svg import Figure, Panel, dot, heading, number, path, strokes, text

RIGHT, ROW = 366, 14
UNITS = (("dense", "dense_flops_per_s", "d0"), ("2:4, counting kept values alone", "sparse_flops_per_s", "d1"))
TERA = 1e12

Info = dict[str, Any]


def roofline(infos: list[Info], styles: Styles, ranks: Ranks, ceilings: Mapping[str, Any]) -> Figure | None:
    """FLOP/s over FLOPs per byte of memory; None without ceilings, or of rows that do not say their work."""
    bandwidth = ceilings.get("memory_bytes_per_s")
    reached = [(info["label"], *at, info) for info in infos if (at := _reached(info))]
    chosen = styles.chosen([label for label, *_ in reached], ranks)
    shown = [one for one in reached if one[0] in chosen]
    if not drawable(bandwidth) or bandwidth is None or len({x for _, x, _, _ in shown}) < 2:
        return None
    formats = {str(info.get("format") or "").partition(":")[0] for _, _, _, info in shown}
    roofs = _roofs(ceilings, {info["dtype"] for _, _, _, info in shown} | formats)
    across = over([x for _, x, _, _ in shown], LEFT, RIGHT)
    up = over([*(rate for _, _, rate, _ in shown), *(rate for _, rate, _ in roofs)], BOTTOM, TOP + 12)
    columns = that_fit(across.ticks(), across)
    body = heading("TFLOP/s", "of one rank's products")
    body += strokes([(LEFT, up(value), RIGHT, up(value)) for value in up.ticks()], "r")
    body += "".join(text(LEFT - 5, up(value) + 4, number(value / TERA), "m e") for value in up.ticks())
    body += "".join(text(across(value), BOTTOM + 15, words, "m k") for value, words in columns)
    body += text((LEFT + RIGHT) / 2, BOTTOM + 28, "FLOPs per byte of memory", "m k")
    for _, rate, looks in roofs:
        # Under a slope memory is the limit, under the flat roof the multipliers are.
        corner = min(max(rate / bandwidth, across.low), across.high)
        start = max(min(bandwidth * across.low, rate), up.low)
        body += path([(across(max(across.low, start / bandwidth)) if start < rate else LEFT, up(start)),
                      (across(corner), up(rate)), (RIGHT, up(rate))], f"g {looks}")  # fmt: skip
    for label, x, rate, info in shown:
        says = f"{label}, N = {info['N']}, K = {info['K']}, B = {info['B']}: {rate / TERA:.3g} TFLOP/s"
        body += dot(across(x), up(rate), styles.looks[label], says)
    top = BOTTOM + 48
    for name, rate, looks in roofs:
        body += path([(LEFT - 4, top - 4), (LEFT + 20, top - 4)], f"g {looks}")
        body += text(LEFT + 26, top, f"{name}: {rate / TERA:,.0f} TFLOP/s", "m")
        top += ROW
    for label in chosen:
        weight = "w" if styles.roles.get(label) == "subject" else ""
        body += dot(LEFT + 8, top - 4, styles.looks[label], label) + text(LEFT + 26, top, label, weight)
        top += ROW
    tall = top - ROW + 8
    left_out = dict.fromkeys(label for label, *_ in reached if label not in chosen)
    return Figure([Panel(WIDTH, tall, body, "FLOP/s reached over FLOPs per byte of memory")], tuple(left_out))


def _reached(info: Info) -> tuple[float, float] | None:
    """FLOPs per byte, and FLOP/s. Where the products were timed by themselves, what ranks say to each other is not in
    their way."""
    work, products = info.get("work"), (info.get("limits") or {}).get("products")
    ms = (products or {}).get("p50_ms") or info.get("p50_ms")
    if (
        not isinstance(work, dict)
        or not drawable(ms)
        or not all(drawable(work.get(key)) for key in ("flops", "memory_bytes"))
    ):
        return None
    found = work["flops"] / work["memory_bytes"], work["flops"] / ms * 1e3
    return found if all(map(drawable, found)) else None


def _roofs(ceilings: Mapping[str, Any], dtypes: set[str]) -> list[tuple[str, float, str]]:
    found = []
    for name, key, looks in UNITS:
        rates = ceilings.get(key)
        for dtype, rate in rates.items() if isinstance(rates, dict) else ():
            if dtype in dtypes and drawable(rate):
                found.append((f"{dtype} {name}", float(rate), looks))
    return found
