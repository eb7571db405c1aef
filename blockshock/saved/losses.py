"""What a row loses, as one number, and what that is measured by."""

from __future__ import annotations

from typing import Any, NamedTuple

Info = dict[str, Any]
OUTPUT, COSINE = "of the output", "by 1 − cosine"
"""What losses are measured by, for unseen inputs: a layer's by the relative error of its output, a network's by how its
embeddings lie to the dense network's."""
MEASURES = "of a layer the relative error of its output, of a network with trained weights 1 − cosine of its embeddings"
"""The same in words."""
MOST_LOSS = 0.1
"""Of a row that is named as the fastest, unless another is asked for."""


class Loss(NamedTuple):
    """What a row loses beside the dense weights, in the measure ``of``."""

    value: float
    of: str


def loss_of(info: Info) -> Loss | None:
    """What a row of a run that is settled loses: nothing where it keeps W; None where the run does not say."""
    measure = COSINE if info.get("network") else OUTPUT
    likeness = info.get("likeness") or {}
    if info["promise"] == "dense":
        return Loss(0.0, measure)
    if measure == COSINE:
        return Loss(1 - likeness["cosine"], COSINE) if "cosine" in likeness else None
    return Loss(info["loses"]["output_error"], OUTPUT) if "loses" in info else None
