"""Makes results of all versions speak alike: words of verdicts, labels, ratios out of their samples, what is wrong."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Collection
from itertools import accumulate, pairwise
from typing import Any

from blockshock.saved.doubted import LIMIT, share
from blockshock.saved.earlier import completed
from blockshock.saved.fits import positive
from blockshock.saved.judged import discredited
from blockshock.saved.quality import lost

Info = dict[str, Any]
Record = dict[str, Any]
EVERY_STEP = re.compile(r":every=0*1(?=:| |$)")
"""``masked:every=1`` is what ``masked`` means, and so the same row."""
CLOSE = 1e-6
"""Relative difference of two numbers out of the same samples: of rounding, not of another formula."""
DERIVED = ("wrong", "saved_as", "believed", "loses", LIMIT)
"""What this module adds to a row, and believes of no file."""
OLDER = ("supported", "rejected", "undecided")
"""The words of runs that saved no blocks."""
LEFT = ("backward_p50_ms", "update_p50_ms")
"""Of two medians the second less the first: below zero that is their scatter, and no time."""
BELIEVED = "no samples that say it: the file is believed"


def settled(records: list[Record]) -> list[Record]:
    """The same records, each with an extra_info of its own.

    - ``label`` and ``storage``: one name for one thing.
    - ``verdict``: ``faster``, ``slower``, ``tie`` or ``undecided``, of a ratio and an interval that follow from the
      saved ``blocks``.
    - ``p50_ms``, ``p95_ms`` and ``builds_p50_ms``: those of the saved samples.
    - ``backward_p50_ms`` and ``update_p50_ms``: None where they are below zero, as differences of medians can be.
    - ``of_limit``: the limit over the time of these rounds; of a part of the pass over its own time, which its stages
      say, and which is at most that of the whole: rounds that time stages can be slower. None, as is the limit, where
      that cannot be one.
    - ``saved_as``: what the file said, where that is something else.
    - ``believed``: says so of a verdict without blocks, in a run whose verdicts have them, and of times without
      samples, in a run whose times have them.
    - ``role``, ``span``, ``promise`` and ``picks``: also of versions that did not save them.
    - ``loses``: the quality of the row's weights, where they are its own and a check of the same run found it.
    - ``wrong``: why the row's output is not to be trusted, where a check of the same run failed.
    """
    judged = any(_newer(record["extra_info"]) for record in records)
    sampled = any("p50_ms" in record["extra_info"] and record.get("samples") for record in records)
    labels = {record["extra_info"].get("label") for record in records}
    infos = [
        _settled(record, labels)
        | ({"believed": BELIEVED} if bare(record) and (judged, sampled)[is_timed(record)] else {})
        for record in records
    ]
    for info, wrong in zip(infos, discredited(infos), strict=True):
        if wrong:
            info["wrong"] = wrong
    for info, quality in zip(infos, lost(infos), strict=True):
        if quality:
            info["loses"] = quality
    return [record | {"extra_info": info} for record, info in zip(records, infos, strict=True)]


def is_timed(record: Record) -> bool:
    """Whether it has times of its own, and not the ratio of a verdict."""
    return "p50_ms" in record["extra_info"] and "verdict" not in record["extra_info"]


def bare(record: Record) -> bool:
    """Whether it is a verdict or has times, and nothing that these could be computed anew from."""
    if "verdict" in record["extra_info"]:
        return not record["extra_info"].get("blocks")
    return is_timed(record) and not record.get("samples")


def _newer(info: Info) -> bool:
    """Whether it is a verdict of a version that saves blocks, be they there or not."""
    return "verdict" in info and (bool(info.get("blocks")) or info["verdict"] not in OLDER)


def _settled(record: Record, labels: Collection[Any]) -> Info:
    """As it is shown, beside rows of those labels: two that were measured side by side stay two."""
    info = {name: value for name, value in record["extra_info"].items() if name not in DERIVED}
    if EVERY_STEP.sub("", str(info.get("label"))) not in labels:
        for name in ("label", "storage"):
            if isinstance(info.get(name), str):
                info[name] = EVERY_STEP.sub("", info[name])
    info = completed(info)
    if is_timed(record):
        info |= {name: None for name in LEFT if info.get(name) is not None and info[name] < 0}
        return _limited(info if bare(record) else _timed(info, record["samples"]))
    if "verdict" in info:
        return info | {"verdict": _word(info)} if bare(record) else _judged(info)
    return info


def _timed(info: Info, samples: list[float]) -> Info:
    """Times, as its samples say: those of one build after the other, which share the rounds as evenly as can be."""
    found: dict[str, list[float]] = {"p50_ms": [_percentile(samples, 50)], "p95_ms": [_percentile(samples, 95)]}
    if builds := min(len(info.get("builds_p50_ms") or ()), len(samples)):
        sizes = [len(range(number, len(samples), builds)) for number in range(builds)]
        ends = list(accumulate(sizes, initial=0))
        found["builds_p50_ms"] = [_percentile(samples[start:end], 50) for start, end in pairwise(ends)]
    said, shown = [], {}
    for name, numbers in found.items():
        saved = info[name] if isinstance(info[name], list) else [info[name]]
        if len(saved) != len(numbers) or not all(map(_close, saved, numbers)):
            said.append(f"{name.removesuffix('_ms').replace('_', ' ')} {', '.join(f'{ms:.4f}' for ms in saved)} ms")
            shown[name] = numbers if isinstance(info[name], list) else numbers[0]
    return info | shown | ({"saved_as": ", ".join(said)} if said else {})


def _limited(info: Info) -> Info:
    """The shares of the limit, of the time that is shown."""
    whole = info["p50_ms"]
    parts = {
        name: share(part | {"p50_ms": min(part["p50_ms"], whole)}) for name, part in (info.get("limits") or {}).items()
    }
    return share(info) | ({"limits": parts} if parts else {})


def _percentile(samples: list[float], percent: int) -> float:
    """In ms, of seconds; linearly interpolated, as of ``timing.percentile``."""
    ordered = sorted(samples)
    low, more = divmod((len(ordered) - 1) * percent, 100)
    high = min(low + 1, len(ordered) - 1)
    return (ordered[low] * (100 - more) + ordered[high] * more) / 100 * 1e3


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=CLOSE)


def _judged(info: Info) -> Info:
    """A verdict, of what its blocks say."""
    said = f"{info['ratio']:.3f} ({info['ratio_low']:.3f} – {info['ratio_high']:.3f}), {info['verdict']}"
    found = ratio_of(info["blocks"])
    if found is None:
        return info | {"verdict": "undecided", "saved_as": f"{said}; its samples give no ratio"}
    numbers = {"ratio": found.value, "ratio_low": found.low, "ratio_high": found.high}
    verdict = found.verdict(info["margin"])
    same = all(_close(info[name], number) for name, number in numbers.items())
    kept = {} if same and info["verdict"] == verdict else {"saved_as": said}
    return info | numbers | {"verdict": verdict} | kept


def _word(info: Info) -> str:
    """Older runs said ``supported``, ``rejected`` or ``undecided``: what they rejected may be slower, or a tie."""
    said: str = info["verdict"]
    low, high, margin = info["ratio_low"], info["ratio_high"], info["margin"]
    if said == "supported":
        return "faster"
    if said != "rejected":
        return said
    if low > 1 + margin:
        return "slower"
    return "tie" if low >= 1 - margin and high <= 1 + margin else "undecided"


def ratio_of(blocks: dict[str, Any]) -> Any | None:
    """The ``pairs.Ratio`` that the blocks of a verdict give: of times, or of the ratio forward over that of a step;
    None where they give none that could be shown."""
    # Imported here, for it needs numpy, and the doctor, who reads runs too, must start where that is missing.
    pairs = importlib.import_module("blockshock.saved.pairs")
    try:
        found = pairs.ratio_of_pairs(blocks)
    except ValueError:
        return None
    return found if all(map(positive, (found.value, found.low, found.high))) else None
