"""What calls of layers take eager, compiled and as CUDA graphs: measured by `python docs/eager.py NAME` on two GPUs.

Writes ``docs/eager/NAME.json`` and, of all that were measured, ``docs/eager.md``; without a name the latter alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measured import heading, page_of, ran_here
from torch import nn

from blockshock import BlockShockLinear
from blockshock.machine import environment
from blockshock.measure import timing
from blockshock.ranks import Ranks, spawn

HERE = Path(__file__).parent
RANKS = 2
SIZES = ((8192, 1024), (4096, 256))
"""N = K, and tokens."""
LAYERS = (1, 4)
"""One after the other in a model."""
ROWS: dict[str, dict[str, str] | None] = {
    "nn.Linear, whole on each GPU": None,
    "block_shock gathered, nccl": {"kernel": "gathered"},
    "block_shock auto, auto": {"combine": "auto"},
}
WAYS = ("graph", "eager", "host", "compiled", "reduce-overhead")
TIMES, CALLS = 5, 30
"""Medians are of so many times so many calls."""


def model_of(row: str, N: int, B: int, layers: int, device: torch.device) -> nn.Sequential:
    """Linear layers (N, N) in bf16, or what a row puts in their place for B tokens."""
    torch.manual_seed(0)  # the same on all ranks
    model, picks = nn.Sequential(), ROWS[row]
    for _ in range(layers):
        linear = nn.Linear(N, N, device=device, dtype=torch.bfloat16)
        model.append(linear if picks is None else BlockShockLinear(linear, tokens=B, **picks))  # type: ignore[arg-type]
    return model


def times(row: str, N: int, B: int, layers: int, ways: tuple[str, ...] = WAYS) -> dict[str, list[float] | str]:
    """Microseconds of forward and backward of such a model, by way; or why there are none. Runs on each rank."""
    on_gpu = torch.cuda.is_initialized()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    model, wait = model_of(row, N, B, layers, device), torch.cuda.synchronize if on_gpu else lambda: None
    x_BK, grad_BN = torch.randn(2, B, N, device=device, dtype=torch.bfloat16)
    leaves = [x_BK.requires_grad_(), *model.parameters()]

    def by(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            for leaf in leaves:
                leaf.grad = None
            forward(x_BK).backward(grad_BN)

        return call

    def compiled(mode: str | None) -> Callable[[], None]:
        torch.compiler.reset()
        call = by(torch.compile(model, mode=mode))
        return lambda: (torch.compiler.cudagraph_mark_step_begin(), call())[1]

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "graph": lambda: timing.capture(lambda: torch.autograd.grad(model(x_BK), leaves, grad_BN)).replay,
        "eager": lambda: by(model),
        "host": lambda: by(model),
        "compiled": lambda: compiled(None),
        "reduce-overhead": lambda: compiled("reduce-overhead"),
    }
    found: dict[str, list[float] | str] = {}
    for way in ways:
        try:
            found[way] = _microseconds(made[way](), wait, until_there=way != "host")
        except Exception as error:  # whatever a compiler raises
            found[way] = f"{type(error).__name__}: {error}"[:200]
    return found


def _microseconds(call: Callable[[], Any], wait: Callable[[], Any], until_there: bool) -> list[float]:
    """Of a call, many on the heels of each other; until all are done, or until the host has launched them."""
    for _ in range(5):
        call()
    found = []
    for _ in range(TIMES):
        wait()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        launched = time.perf_counter()
        wait()
        end = time.perf_counter() if until_there else launched
        found.append(round((end - start) / CALLS * 1e6, 1))
    return found


def measure(ranks: Ranks) -> Iterator[dict[str, Any]]:
    """Each model, as rank 0 has it."""
    for (N, B), layers, row in product(SIZES, LAYERS, ROWS):
        found = ranks.run(times, row, N, B, layers)[0]
        print(f"{layers} × {row}, {N} × {N}, {B} tokens: {_told(found)}", flush=True)
        yield {"N": N, "B": B, "layers": layers, "row": row, "microseconds": found}


def about() -> dict[str, Any]:
    """Where and of what it was measured."""
    gpu, _, _ = environment.gpus()[0].partition(",")
    return {**ran_here(f"{RANKS} × {gpu}"), "models": []}


def _told(found: dict[str, list[float] | str]) -> str:
    return ", ".join(f"{way} {one if isinstance(one, str) else statistics.median(one)}" for way, one in found.items())


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Its section of the page."""
    yield from heading("eager", name, found, "bf16,")
    yield "| N = K | tokens | layers | row | its graph, µs | eager ÷ graph | host alone | compiled | reduce-overhead |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model in found["models"]:
        spent = model["microseconds"]
        graph = spent["graph"] if isinstance(spent["graph"], list) else None
        told = f"{statistics.median(graph):.0f} ± {_half(graph):.0f}" if graph else "–"
        cells = [_cell(spent[way], graph) for way in WAYS[1:]]
        yield f"| {model['N']} | {model['B']} | {model['layers']} | {model['row']} | {told} | {' | '.join(cells)} |"


def _half(times: list[float]) -> float:
    return (max(times) - min(times)) / 2


def _cell(times: list[float] | str, graph: list[float] | None) -> str:
    if isinstance(times, str) or graph is None:
        return "–"
    return f"{statistics.median(times) / statistics.median(graph):.2f} ± {_half(times) / statistics.median(graph):.2f}"


def page() -> str:
    """The page of all that was measured."""
    return page_of(HERE / "eager", lines)


def main(names: list[str]) -> None:
    """Measure what is named, and write the page."""
    for name in names:
        if torch.cuda.device_count() < RANKS:
            sys.exit(f"this is about {RANKS} GPUs of one machine: run it on one that has them")
        found = about()
        with spawn(RANKS, "cuda") as ranks:
            for model in measure(ranks):
                found["models"].append(model)
                text = json.dumps(found, indent=1) + "\n"
                (HERE / "eager" / f"{name}.json").write_text(text, encoding="utf-8")  # what is there, if it is stopped
    (HERE / "eager.md").write_text(page(), encoding="utf-8")
    print(f"wrote {HERE / 'eager.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
