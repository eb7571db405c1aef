"""The parts of a report, in the order in which they are read, and which part a result belongs to."""

from __future__ import annotations

from typing import Any

SECTIONS = {
    "forward": "Forward (phase 1)",
    "backward": "Forward and backward (phase 2)",
    "training": "Training step (phase 3)",
    "ffn": "Feed-forward block, forward and backward (phase 6)",
    "networks": "Whole networks (phase 4)",
    "learning": "What recipes learn (phase 5)",
    "verdicts": "Verdicts",
    "accuracy": "Is it right? (phases 0, 2 and 3)",
    "drift": "Drift",
    "machine": "The machine's ceilings",
}
PHASES = {1: "forward", 2: "backward", 3: "training", 6: "ffn"}
COMMANDS = {
    "forward": "pytest tests/test_phase1_forward.py -m bench",
    "backward": "pytest tests/test_phase2_backward.py -m bench",
    "training": "pytest tests/test_phase3_train.py -m bench",
    "verdicts": "pytest tests/test_hypotheses.py -m bench",
    "accuracy": "pytest tests/test_phase0_correctness.py",
    "drift": "pytest tests/test_drift.py",
    "networks": "pytest tests/test_models.py -m bench",
    "learning": "pytest tests/test_learning.py -m bench",
    "ffn": "pytest tests/test_blocks.py",
}
"""What measures each part, less ``--benchmark-autosave``."""
STAGES = {
    "products": ("layout", "quantise", "matmul", "dequantise", "grad_x", "estimate", "grad_w"),
    "communication": ("reduce",),
    "update": ("decay", "optimizer", "mask", "sparsify", "compress", "refresh"),
}
"""The parts of a pass that have a limit of their own, and the stages that each is made of."""


def section_of(info: dict[str, Any]) -> str | None:
    """The section of a result; None of one that ran untimed and unchecked."""
    if "verdict" in info:
        return "verdicts"
    if "network" in info:
        return "networks"
    if "last_bits" in info:
        return "learning"
    if "worst_drift" in info:
        return "drift"
    if "error_ratio" in info or "worst_weight_share" in info:
        return "accuracy"
    return PHASES.get(info["phase"]) if "p50_ms" in info else None


def judges(info: dict[str, Any]) -> str | None:
    """Of a verdict the section whose times its ratio is one of: ratios of ratios are of none. Runs without blocks
    judged forward passes, and of what is trained ratios of ratios."""
    if "verdict" not in info:
        return None
    told = list(info.get("blocks") or (("forward", "training") if info.get("optimizer") else ("forward",)))
    return told[0] if len(told) == 1 else None
