"""Gives rows of older files what newer ones save: what a method is in the comparison, and what was picked for it."""

from __future__ import annotations

from typing import Any

Info = dict[str, Any]
_GROUP = ("dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")
ROLES = {"dense_single": "rival", **dict.fromkeys(_GROUP, "rival"), "masked_split_dense": "ablation"}
"""Of the methods of older files; all others were asked about."""
SPANS = {"dense_single": "one"}
AXES = ("kernel", "mask", "storage")


def completed(info: Info) -> Info:
    """The row with what it lacks of ``role``, ``span``, ``promise`` and ``picks``, and a verdict with its rival's."""
    method = info["method"]
    told: Info = {"role": ROLES.get(method, "subject"), "span": SPANS.get(method, "group"), "promise": "dense"}
    told["picks"] = {axis: info[axis] for axis in AXES if info.get(axis) is not None}
    if "verdict" in info:
        rival = info["rival"].partition(" ")[0]
        told |= {"rival_role": ROLES.get(rival, "subject"), "rival_span": SPANS.get(rival, "group")}
        # Only a rival in the row's own format was compared with in one.
        shared = (info.get("picks") or {}).get("format") in info["rival"].split()
        told["rival_promise"] = "own weights" if shared else "dense"
    return info | {name: value for name, value in told.items() if info.get(name) is None}
