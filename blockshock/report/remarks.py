"""What a reader must know of a run beside its answer: what is left out, and what its numbers contain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockshock.report.limits import limited
from blockshock.report.tables import Info
from blockshock.saved import Run, bare, is_timed

COLLECTIVES = ("all_reduce", "all_gather")
SHORT_MS = 0.2
"""Of a longer time what writing the cache back takes is no part to speak of."""


def remarks(run: Run) -> Iterator[str]:
    """What is not in the report, and what a reader must know of how the run was put together."""
    if not run.records:
        yield "nothing in it can be shown"
    for name, count in run.left_out.items():
        yield f"left out: {count} results that do not say their {name}, of another version it seems"
    if disturbed := sum("clock" in info for info in run.infos):
        yield f"{disturbed} results were measured while the machine was suspended or its clock was set: † marks them"
    for what, records in (
        ("verdicts", [record for record in run.records if "verdict" in record["extra_info"]]),
        ("timed results", [record for record in run.records if is_timed(record)]),
    ):
        if anew := sum("saved_as" in record["extra_info"] for record in records):
            yield f"{anew} {what} are not what their samples say: shown is what the samples say, § marks them"
        if believed := sum(map(bare, records)):
            marked = any("believed" in record["extra_info"] for record in records)
            how = "§ marks them" if marked else "as it is of older versions"
            yield f"{believed} {what} were saved without samples: the file is believed, {how}"
    yield from unmeasured(run)
    yield from flushes([run])
    yield from run.notes


def unmeasured(run: Run) -> Iterator[str]:
    """One line on the ceilings that could not be measured, if any could not, and on the results that have no limit."""
    ceilings = run.machine.get("ceilings") or {}
    without = sum("limits" in info and not limited(info) for info in run.infos)
    if names := list(dict.fromkeys(_missing(ceilings, run.infos))):
        told = ", ".join(name.removesuffix("_per_s").replace("_", " ") for name in names)
        yield f"ceilings that could not be measured: {told}; {without} results have no limit, a dash stands for it"


def _missing(ceilings: dict[str, Any], infos: list[Info]) -> Iterator[str]:
    """Names of what is None, and of products in a dtype that was timed; one rank alone has no collectives."""
    several = any(info["ranks"] > 1 for info in infos)
    for name, value in ceilings.items():
        if value is None and (several or name not in COLLECTIVES):
            yield name
        if isinstance(value, dict):
            yield from (f"{name} {part}" for part, number in value.items() if number is None)
    if isinstance(dense := ceilings.get("dense_flops_per_s"), dict):
        yield from (f"dense {info['dtype']}" for info in infos if "limits" in info and info["dtype"] not in dense)


def flushes(runs: list[Run]) -> Iterator[str]:
    """How the cache was emptied before each round, where that is part of what was timed."""
    timed = [info for run in runs for info in run.infos if info["device"] == "cuda" and _is_timed(info)]
    zeroed = sum(_was_zeroed(info) for info in timed)
    if not zeroed:
        return
    yield f"flushed by zeroing: times below {SHORT_MS} ms, and ratios of such, contain microseconds of writing back"
    if clean := sum(info.get("flush") == "clean" for info in timed):
        yield f"{zeroed} results were flushed so, {clean} cleanly: not to be compared below {SHORT_MS} ms"


def _is_timed(info: Info) -> bool:
    return "p50_ms" in info or "verdict" in info


def _was_zeroed(info: Info) -> bool:
    """Verdicts say how only since it is done cleanly."""
    return "flush" not in info and bool(info.get("l2_flushed", "verdict" in info))
