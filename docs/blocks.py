"""Speed-ups of block-sparse layers that were published, beside those of a saved run: `python docs/blocks.py [RUN …]`.

The two linear layers of ViT-L's feed-forward block, 256 images of 197 tokens (Cai, GPU Sparsity slides, 2024).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from blockshock.registry import parse_spec
from blockshock.report.ran import hardware
from blockshock.saved import NotARun, Run, latest_run, read_run, section_of, sound

Info = dict[str, Any]
SIZES, TOKENS = (8, 16, 32, 64), 50_432
PUBLISHED = {
    (4096, 1024, 0.9): (0.007, 0.509, 1.439, 2.202),
    (4096, 1024, 0.8): (0.003, 0.262, 0.666, 1.776),
    (1024, 4096, 0.9): (0.008, 0.429, 1.073, 1.631),
    (1024, 4096, 0.8): (0.004, 0.280, 0.795, 1.251),
}
"""By N, K and level, of each of the sizes."""

Speedups = dict[tuple[int, int, int], dict[float, float]]
"""Of N, K and size, by level."""


def speedups(run: Run) -> Speedups:
    """Over the dense layer of the same point, of all that is right and was timed forward on so many tokens."""
    timed = [
        info
        for info in run.infos
        if info.get("p50_ms") and section_of(info) == "forward" and info["B"] == TOKENS and sound(info)
    ]
    dense = {_point(info): info["p50_ms"] for info in timed if info["method"] == "dense_single"}
    found: Speedups = defaultdict(dict)
    for info in timed:
        if info["method"] == "block_sparse" and _point(info) in dense:
            name, parameters = parse_spec(info["picks"]["block_mask"])
            if name == "blocks":
                size, level = parameters.get("size", 64), parameters.get("level", 0.9)
                found[info["N"], info["K"], size][float(level)] = dense[_point(info)] / info["p50_ms"]
    return found


def _point(info: Info) -> tuple[Any, ...]:
    return info["N"], info["K"], info["workload"], info["dtype"]


def break_even(by_level: dict[float, float]) -> str:
    """From which level on it is as fast as the dense layer: the time is taken to be a line between two levels."""
    levels = sorted(by_level)
    for below, above in pairwise(levels):
        slow, fast = 1 / by_level[below], 1 / by_level[above]
        if slow > 1 >= fast:
            return f"{below + (above - below) * (slow - 1) / (slow - fast):.2f}"
    return f"below {levels[0]:g}" if by_level[levels[0]] >= 1 else f"above {levels[-1]:g}"


def lines(run: Run) -> Iterator[str]:
    """The table, as Markdown; none of a run without such rows."""
    found = speedups(run)
    if not found:
        return
    yield f"{run.name}, {hardware(run)}: speed-up over dense, as published → here"
    yield ""
    yield "| layer, level | " + " | ".join(f"size {size}" for size in SIZES) + " |"
    yield "|---" * (len(SIZES) + 1) + "|"
    for (N, K, level), published in PUBLISHED.items():
        ours = [found.get((N, K, size), {}).get(level) for size in SIZES]
        cells = [
            f"{said:g} → {'–' if here is None else f'{here:.3g}'}" for said, here in zip(published, ours, strict=True)
        ]
        yield f"| {N}×{K}, {level:g} | " + " | ".join(cells) + " |"
    for N, K in dict.fromkeys((N, K) for N, K, _ in PUBLISHED):
        cells = [break_even(found[N, K, size]) if found.get((N, K, size)) else "–" for size in SIZES]
        yield f"| {N}×{K}, pays from level | " + " | ".join(cells) + " |"


def main(names: list[str]) -> int:
    """Print the table of each run, or of the one that was made last. Returns 1 where one has none."""
    told = []
    for path in [Path(name) for name in names] or [latest_run()]:
        found = list(lines(read_run(path)))
        print("\n".join(found) if found else f"{path}: no block-sparse rows of {TOKENS} tokens beside dense_single")
        told.append(bool(found))
    return 0 if all(told) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotARun as error:
        sys.exit(str(error))
