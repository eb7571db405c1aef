"""Numbers that sentences of the texts say, each of the saved runs that it names: ``generate.py`` fills them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from statistics import median
from typing import Any

from report_page import OFFICIAL, ROOT

from blockshock.errors import InputError
from blockshock.report.answer import pays
from blockshock.report.asked import spanned
from blockshock.report.fastest import against_best
from blockshock.report.ran import hardware_kind
from blockshock.report.remarks import SHORT_MS
from blockshock.report.where import named
from blockshock.saved import Run, read_run, section_of

Info = dict[str, Any]
TWO_GPUS, PRUNED_TP = "0012_2xH200-pruned-tp", ("pruned_tp_row", "pruned_tp_col")
HALVES, GATHERED = "0009_2xH100", "block_shock gathered 1100"
ONE_GPU = "0011_1xH100-pruned"
WAYS, FASTEST = "0039_2xH200-auto", "block_shock auto 1100 auto"
AS_USERS_RUN_IT = ("dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")
"""On two GPUs, weights as ``nn.Linear`` has them; of rows that pick no way to combine: by NCCL."""
FEW_TOKENS, KERNELS_OWN = 16, (4096, 8192, 16384)
"""Points where the halves' sum is the kernel's own."""


def said(name: str) -> str:
    """What goes between ``<!-- said: NAME -->`` and ``<!-- end -->``.

    Raises:
        InputError: no number has that name.
    """
    if name not in SAID:
        raise InputError(f"no number is called {name!r}: choose of {', '.join(SAID)}")
    return SAID[name]()


@cache
def _read(run: str) -> Run:
    return read_run(ROOT / OFFICIAL / run)


@cache
def _timed(run: str) -> dict[str, Info]:
    """What a run has timed, by the names of its tests."""
    records = _read(run).records
    return {
        record["name"]: record["extra_info"]
        for record in records
        if "p50_ms" in record["extra_info"] and "verdict" not in record["extra_info"]
    }


def _on(run: str) -> str:
    """How many ranks it had, each on which card."""
    found = _read(run)
    card, *_ = hardware_kind(found).removeprefix("NVIDIA ").split()
    return f"{max(info['ranks'] for info in found.infos)} × {card}"


def _zeroed() -> Iterator[tuple[float, float]]:
    """Short times on the same hardware, in ms: flushed by zeroing, and cleanly."""
    zeroed, clean = _timed("0006_2xH200-full"), _timed("0008_2xH200")
    for name in zeroed.keys() & clean.keys():
        if zeroed[name]["p50_ms"] < SHORT_MS:
            yield zeroed[name]["p50_ms"], clean[name]["p50_ms"]


def _written_back() -> str:
    return f"up to {max(zeroed - clean for zeroed, clean in _zeroed()) * 1e3:.0f} µs"


def _written_back_of_a_call() -> str:
    return f"up to {max(1 - clean / zeroed for zeroed, clean in _zeroed()):.0%} of a call"


def _torchrun() -> str:
    """Of what torchrun started over what pytest did."""
    started, spawned = (_timed(f"0007_2xH200-torchrun/{part}.json") for part in ("1_torchrun", "2_spawned"))
    ratios = [started[name]["p50_ms"] / spawned[name]["p50_ms"] for name in started.keys() & spawned.keys()]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _eager() -> str:
    """What an eager forward call through cuSPARSELt takes beyond its captured one."""
    rows = [info for info in _timed(ONE_GPU).values() if info["label"] == "pruned cusparselt magnitude"]
    more = [info["cuda_events_p50_ms"] - info["p50_ms"] for info in rows if section_of(info) == "forward"]
    return f"{min(more):.1f} to {max(more):.1f} ms more on {_on(ONE_GPU)}"


def _beyond_the_limit() -> str:
    """Shares of the limit, of whole passes and of their parts, that no implementation can have."""
    rows = _timed("0006_2xH200-full").values()
    every = [part for info in rows for part in (info, *info.get("limits", {}).values())]
    beyond = sorted(share for part in every if (share := part.get("of_limit") or 0.0) > 1)
    return f"{len(beyond)} shares still stand at {beyond[0]:.0%} to {beyond[-1]:.0%}"


def _two_gpus() -> str:
    """What pruned layers take that two GPUs share, over the best dense alternative, and where they pay."""
    found = [one for one in against_best(_read(TWO_GPUS)) if one.method in PRUNED_TP]
    steps = spanned(one.ratio for one in found if one.section == "training")
    told = f"on {_on(TWO_GPUS)}, {' and '.join(PRUNED_TP)}: training step {steps} of the best dense, forward"
    forward = [one for one in found if one.section == "forward"]
    paying = [one for one in forward if pays(one)]
    if not paying:
        return f"{told} nowhere faster"
    at = named((one.N, one.K, one.B) for one in paying)
    rest = "slower" if all(pays(one) is False for one in forward if one not in paying) else "undecided or slower"
    return f"{told} {spanned(one.ratio for one in paying)} where either pays ({at}), {rest} elsewhere"


def _halves() -> str:
    """What halves that all-reduce by NCCL take over the best dense alternative."""
    found = [one for one in against_best(_read(HALVES)) if one.label.startswith(GATHERED)]
    spans = {name: spanned(one.ratio for one in found if one.section == name) for name in ("forward", "training")}
    return f"on {_on(HALVES)}: forward {spans['forward']}, training step {spans['training']} of the best dense"


def _fastest() -> str:
    """What halves take by the fastest kernel and way to combine over the best dense of one GPU or both in any way, and
    of both by NCCL, by hand or torch's DTensor."""
    found = [one for one in against_best(_read(WAYS)) if one.label == FASTEST]
    today = _over_nccl()
    beyond = named((N, N, B) for (N, B), ratio in today.items() if ratio > 1)
    told = f" (above 1 at {beyond})" if beyond else ""
    return (
        f"on {_on(WAYS)}: {spanned(one.ratio for one in found)} of the best dense, "
        f"{spanned(today.values())} of dense shards by NCCL{told}"
    )


def _over_nccl() -> dict[tuple[int, int], float]:
    """The second by N and B."""
    return {
        point: rows[FASTEST]["p50_ms"] / min(rows[label]["p50_ms"] for label in AS_USERS_RUN_IT)
        for point, rows in sorted(_by_point().items())
    }


def _by_point() -> dict[tuple[int, int], dict[str, Info]]:
    """What was timed of all ways, by N and B, and by label."""
    found: dict[tuple[int, int], dict[str, Info]] = {}
    for info in _timed(WAYS).values():
        found.setdefault((info["N"], info["B"]), {})[info["label"]] = info
    return found


def _parts(label: str, info: Info) -> str:
    """What of a row's time is its product's by itself, and what its ranks' agreeing adds."""
    product = info["alone"]["partial"]["p50_ms"]
    return f"{label} {product * 1e3:.1f} µs and {(info['p50_ms'] - product) * 1e3:.1f} µs more"


def _kernel_and_sum() -> str:
    """Both of the halves, of few tokens, and of what users of torch have there."""
    told = []
    for (N, B), rows in sorted(_by_point().items()):
        if B == FEW_TOKENS and N in KERNELS_OWN:
            rival = min(("dense_tp_row", "dense_tp_col"), key=lambda label: rows[label]["p50_ms"])
            told.append(f"N = {N}: {_parts('block_shock', rows[FASTEST])}, {_parts(rival, rows[rival])}")
    return f"on {_on(WAYS)}, of {FEW_TOKENS} tokens, {'; '.join(told)}"


def _transposed() -> str:
    """What dense shards take that are stored transposed over those that are not, of few tokens and of many."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for rows in _by_point().values():
        for label in ("dense_tp_row", "dense_tp_col"):
            of_few = rows[label]["B"] <= 256
            found[of_few].append(rows[f"{label}:transposed=yes"]["p50_ms"] / rows[label]["p50_ms"])
    few, many = (f"{median(found[of_few]):.2f}, {spanned(found[of_few])}" for of_few in (True, False))
    return f"on {_on(WAYS)}, up to 256 tokens {few}; of more {many}"


SAID: dict[str, Callable[[], str]] = {
    "written back": _written_back,
    "written back, of a call": _written_back_of_a_call,
    "torchrun": _torchrun,
    "eager": _eager,
    "beyond the limit": _beyond_the_limit,
    "two GPUs": _two_gpus,
    "halves": _halves,
    "fastest": _fastest,
    "transposed": _transposed,
    "kernel and sum": _kernel_and_sum,
}
