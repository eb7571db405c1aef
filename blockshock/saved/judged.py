"""Which results are right, by what was saved of them, and which later rows are of something that was found wrong."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from blockshock.saved.fits import or_inf
from blockshock.saved.words import several

Info = dict[str, Any]
PASSES = 2.0
"""Times the dense product's error, where a row does not say its own limit."""
UNEVEN = 3.0
"""Times more than that is the most that is allowed for a few large elements: 1 + 2/√n, of one element."""
CLOSE = 1e-6
"""Relative difference of two numbers of which one follows from the other: of rounding alone."""
LEARNS = 0.9
"""Of its first loss a training run's last one is less."""
TRAINED = "storage"
"""What is picked only where something is trained, and so not where an output or its quality is checked."""
CHECKS = ("error_ratio", "worst_weight_share", "worst_drift")
MEASURED = "measured"
"""The status of a row that nothing is judged of; of others it is ``right`` or ``wrong``, and older rows have none."""


def was_checked(info: Info) -> bool:
    """Whether the row says how right something is: of verdicts such numbers are not read."""
    judged = (info.get("status") or MEASURED) != MEASURED
    return "verdict" not in info and (judged or any(check in info for check in CHECKS))


def faults(info: Info) -> list[str]:
    """What a checked row failed by, in words. None where it is right, or says nothing of it. NaN is a fault."""
    if not was_checked(info):
        return []
    largest = _largest_limit(info)
    found = list(_of_numbers(info, largest))
    for loss, numbers in _losses(info).items():
        found += [f"{fault} ({loss})" for fault in _of_numbers(numbers, largest)]
    if info.get("status") == "wrong" and not found:
        found.append(info.get("failure") or "it was judged wrong when it ran")
    return list(dict.fromkeys(found))


def _losses(info: Info) -> dict[str, Info]:
    """Numbers by loss, of a row about gradients. A training run's losses are a list of how it went."""
    losses = info.get("losses")
    return losses if isinstance(losses, dict) else {}


def _largest_limit(info: Info) -> float:
    """What ``error_ratio_limit`` can be at most, of its formula in ``measure/accuracy.py``.

    Of as many roundings as ranks and one more, and of partial sums as large as the terms of a sum are when their signs
    are independent: √K times the sum, or √N of a gradient.
    """
    roundings = max(info["ranks"] + 1, 2)
    cancellation = (max(info["N"], info["K"]) + 1) / 2
    return PASSES * math.sqrt(roundings / 2) * math.sqrt(cancellation) * UNEVEN


def _of_numbers(info: Info, largest: float) -> Iterator[str]:
    if "error_ratio" in info:
        yield from _of_errors(info, largest)
    if not info.get("of_bound", 0.0) <= 1:
        yield f"an element is off by {info['of_bound']:.3g} × its bound"
    if info.get("same_on_ranks") is False:
        yield "its ranks differ in their bits"
    if info.get("same_again") is False:
        yield "two runs differ in their bits"
    if "worst_weight_share" in info:
        yield from _of_training(info)
    if "worst_drift" in info:
        yield from _of_drift(info)


def _of_drift(info: Info) -> Iterator[str]:
    """Of outputs that were fed back: of the ratios as saved, and of the last as the errors of all steps give it."""
    ratios = [info["worst_drift"], *info["ratio"]]
    if "dense_relative_error" in info:
        ours, dense = (math.hypot(*info[name]) for name in ("relative_error", "dense_relative_error"))
        ratios.append(1.0 if ours == dense else ours / dense if dense else math.inf)
    if not all(ratio < PASSES for ratio in ratios):
        yield f"fed back to itself its error grows to {max(ratios, key=or_inf):.3g} × the dense product's"
    if not all(map(math.isfinite, info.get("max_error", ()))):
        yield "an element that was fed back is off by more than any number"


def _of_errors(info: Info, largest: float) -> Iterator[str]:
    """Of an output beside float64: of its numbers, and of whether they agree with each other."""
    found, limit = info["error_ratio"], info.get("error_ratio_limit") or PASSES
    if not found <= limit:
        yield f"its error is {found:.3g} × the dense product's"
    if not limit <= largest:
        yield f"what passes is saved as {limit:.3g} × the dense product's error, and can be {largest:.3g} × at most"
    if "worst_drift" in info:
        return  # the others are lists, of each step
    relative, dense = info.get("relative_error"), info.get("dense_relative_error")
    if relative is not None and dense is not None:
        follows = 1.0 if relative == dense else relative / dense if dense else math.inf
        if not (math.isclose(found, follows, rel_tol=CLOSE) or found != found):
            yield f"its error is saved as {found:.3g} × the dense product's, and is {follows:.3g} × by the two errors"
    if not info.get("max_error", 0.0) < math.inf:
        yield f"an element is off by {info['max_error']:.3g}"


def _of_training(info: Info) -> Iterator[str]:
    """Of many steps beside dense ones, or of a recipe; the lists are not in every run."""
    ways = [
        found <= passes
        for what in ("weight", "loss")
        for found, passes in zip(info.get(f"{what}_distance") or (), info.get(f"{what}_limit") or (), strict=False)
    ]
    learns = info.get("promise") == "learns"
    if not all([info["worst_weight_share"] <= 1, *ways]):
        yield "it is not what its recipe says" if learns else "it leaves the dense trajectory"
    yield from info.get("mask_faults", [])[:1]
    losses = info.get("losses")
    if isinstance(losses, list) and losses and not losses[-1] < LEARNS * losses[0]:
        yield "it learns nothing"


def discredited(infos: list[Info]) -> list[str | None]:
    """Of each row why its output is not to be trusted; None of one of which nothing is known to be wrong.

    One wrong output discredits what made it (method and picks) at every point of its dtype, in its own phase and
    all later ones; a wrong training run those steps alone that have its optimizer and storage. A layer that drifts is
    not wrong by itself.
    """
    checked: dict[Any, list[Info]] = defaultdict(list)
    for info in infos:
        if was_checked(info) and "worst_drift" not in info:
            checked[weights_of(info)].append(info)
    failed = {picks: [(row, why) for row in rows if (why := faults(row))] for picks, rows in checked.items()}
    reasons = [_reason(info, failed.get(weights_of(info), ()), checked[weights_of(info)]) for info in infos]
    wrong = {(info["label"], info["dtype"]) for info, reason in zip(infos, reasons, strict=True) if reason}
    return [
        reason or ("its rival's output is wrong" if (info.get("rival"), info["dtype"]) in wrong else None)
        for info, reason in zip(infos, reasons, strict=True)
    ]


def weights_of(info: Info) -> tuple[Any, ...]:
    """What rows share that multiply alike: the method, what was picked for it, the dtype."""
    picks = frozenset((axis, spec) for axis, spec in info["picks"].items() if axis != TRAINED)
    return info["method"], picks, info["dtype"]


def _reason(info: Info, failed: Iterable[tuple[Info, list[str]]], checked: list[Info]) -> str | None:
    if "worst_drift" in info and was_checked(info):
        return "; ".join(faults(info)) or None
    wrong = [(row, why) for row, why in failed if _concerns(row, info)]
    if not wrong:
        return None
    reasons = Counter(why for _, whys in wrong for why in whys)
    of = sum(_concerns(row, info) for row in checked)
    points = several(of, "point that was", "points that were")
    return f"its output is wrong at {len(wrong)} of {points} checked: {reasons.most_common(1)[0][0]}"


def _concerns(checked: Info, info: Info) -> bool:
    trained = [name for name in ("optimizer", "storage") if checked.get(name) is not None]
    return checked["phase"] <= _phase(info) and all(checked[name] == info.get(name) for name in trained)


def _phase(info: Info) -> int:
    """Of what a row is about: verdicts are saved with phase 1, about training steps too."""
    return 3 if "verdict" in info and info.get("optimizer") else info["phase"]


def fresh(info: Info) -> bool:
    """Whether it trains on the weights that it has just stepped to: between two compressions ``masked`` does not."""
    cadences = [part.removeprefix("every=") for part in (info.get("storage") or "").split(":") if part[:6] == "every="]
    return all(cadence.isdecimal() and int(cadence) == 1 for cadence in cadences)


def sound(info: Info) -> bool:
    """Whether it may stand for its method as the fastest: nothing wrong with it, and no stale weights."""
    return fresh(info) and not info.get("wrong")


def is_dense(info: Info) -> bool:
    """Whether it is a dense alternative: a rival that keeps the weights as they are."""
    return bool(info["role"] == "rival" and info["promise"] == "dense")


def is_alone(info: Info) -> bool:
    """Whether it is set beside those of one device only: it runs on one, and is no such alternative itself."""
    return bool(info["span"] == "one" and not is_dense(info))


def dense_beside(rows: Iterable[Info], beside: Info | None = None) -> list[Info]:
    """The dense alternatives among the rows: all, or those that a row is to be compared with."""
    alone = beside is not None and is_alone(beside)
    return [row for row in rows if is_dense(row) and (row["span"] == "one" or not alone)]


def in_formats_alone(rows: Iterable[Info], beside: Info | None = None) -> list[Info]:
    """Of the dense alternatives in a format those that are not there in the layer's own dtype too: whether they would
    be the fastest nobody knows."""
    rows = list(rows)
    alone, plain = beside is not None and is_alone(beside), {row["method"] for row in dense_beside(rows, beside)}
    others = [row for row in rows if row["role"] == "rival" and not is_dense(row) and row["picks"].get("format")]
    return [row for row in others if row["method"] not in plain and (row["span"] == "one" or not alone)]


def best_dense(rows: Iterable[Info], beside: Info | None = None) -> Info | None:
    """The fastest of these among the timed rows of one point; None where none was timed, or one in a format alone."""
    rows = list(rows)
    if in_formats_alone(rows, beside):
        return None
    dense = [row for row in dense_beside(rows, beside) if "p50_ms" in row and sound(row)]
    return min(dense, key=lambda row: row["p50_ms"], default=None)
