"""What a row loses, as one number, and what that is measured by."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Info = dict[str, Any]
OUTPUT, COSINE, BITS = "of the output", "by 1 − cosine", "bits per byte"
"""What losses are measured by, for unseen inputs: a layer's by the relative error of its output; a network's by how its
embeddings lie to the dense network's, or by the bits per byte that it takes more than that one."""
MEASURES = (
    "of a layer the relative error of its output; of a network with trained weights 1 − cosine of its embeddings, or "
    "of a language model the bits per byte that it adds"
)
"""The same in words."""
MOST_LOSS = 0.1
"""Of a row that is named as the fastest, unless another is asked for."""


class Loss(NamedTuple):
    """What a row loses beside the dense weights, in the measure ``of``."""

    value: float
    of: str


def loss_of(info: Info) -> Loss | None:
    """What a row of a run that is settled loses: nothing where it keeps W; None where the run does not say, or where it
    says no number, as of an output that is all zeros."""
    likeness = info.get("likeness") or {}
    if not info.get("network"):
        known = info["loses"]["output_error"] if "loses" in info else None
        measure = OUTPUT
    elif "added_bits_per_byte" in likeness:
        measure, known = BITS, likeness["added_bits_per_byte"]
    else:
        measure, known = COSINE, 1 - likeness["cosine"] if "cosine" in likeness else None
    if info["promise"] == "dense":
        return Loss(0.0, measure)
    return None if known is None or math.isnan(known) else Loss(known, measure)
