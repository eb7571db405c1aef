"""Makes results of all versions speak alike: words of verdicts, labels, ratios out of their samples, what is wrong."""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

from blockshock.report.judged import discredited
from blockshock.report.schema import positive

Info = dict[str, Any]
Record = dict[str, Any]
EVERY_STEP = re.compile(r":every=0*1(?=:| |$)")
"""``masked:every=1`` is what ``masked`` means, and so the same row."""
CLOSE = 1e-6
"""Relative difference of two ratios out of the same samples: of rounding, not of another formula."""
DERIVED = ("wrong", "saved_as", "believed")
"""What this module adds to a row, and believes of no file."""
OLDER = ("supported", "rejected", "undecided")
"""The words of runs that saved no blocks."""
BELIEVED = "no samples saved: the file is believed"


def settled(records: list[Record]) -> list[Record]:
    """The same records, each with an extra_info of its own.

    - ``label`` and ``storage``: one name for one thing.
    - ``verdict``: ``faster``, ``slower``, ``tie`` or ``undecided``, of a ratio and an interval that follow from the
      saved ``blocks``; ``saved_as`` holds what the file said, where that is something else. ``believed`` says so of
      a verdict without blocks, in a run whose verdicts have them.
    - ``wrong``: why the row's output is not to be trusted, where a check of the same run failed.
    """
    believed = {"believed": BELIEVED} if any(map(_newer, (record["extra_info"] for record in records))) else {}
    infos = [_settled(record["extra_info"], believed) for record in records]
    for info, wrong in zip(infos, discredited(infos), strict=True):
        if wrong:
            info["wrong"] = wrong
    return [record | {"extra_info": info} for record, info in zip(records, infos, strict=True)]


def without_samples(info: Info) -> bool:
    """Whether it is a verdict whose ratio cannot be computed anew."""
    return "verdict" in info and not info.get("blocks")


def _newer(info: Info) -> bool:
    """Whether it is a verdict of a version that saves blocks, be they there or not."""
    return "verdict" in info and (not without_samples(info) or info["verdict"] not in OLDER)


def _settled(info: Info, believed: Info) -> Info:
    info = {name: value for name, value in info.items() if name not in DERIVED}
    for name in ("label", "storage"):
        if isinstance(info.get(name), str):
            info[name] = EVERY_STEP.sub("", info[name])
    if without_samples(info):
        return info | {"verdict": _word(info)} | believed
    return _judged(info) if "verdict" in info else info


def _judged(info: Info) -> Info:
    """A verdict, of what its blocks say."""
    said = f"{info['ratio']:.3f} ({info['ratio_low']:.3f} – {info['ratio_high']:.3f}), {info['verdict']}"
    found = ratio_of(info["blocks"])
    if found is None:
        return info | {"verdict": "undecided", "saved_as": f"{said}; its samples give no ratio"}
    numbers = {"ratio": found.value, "ratio_low": found.low, "ratio_high": found.high}
    verdict = found.verdict(info["margin"])
    same = all(math.isclose(info[name], number, rel_tol=CLOSE) for name, number in numbers.items())
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
    pairs = importlib.import_module("blockshock.pairs")
    try:
        found = pairs.ratio_of_pairs(blocks)
    except ValueError:
        return None
    return found if all(map(positive, (found.value, found.low, found.high))) else None
