"""What calls of layers take eager, compiled and as CUDA graphs: measured by `python docs/eager.py NAME` on two GPUs.

Writes ``docs/eager/NAME.json`` and, of all that were measured, ``docs/eager.md``; without a name the latter alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measured import heading, page_of, ran_here
from torch import nn
from torch.nn import functional as F

from blockshock import BlockShockLinear
from blockshock.machine import all_gather, environment
from blockshock.measure import timing
from blockshock.ranks import Ranks, spawn

HERE = Path(__file__).parent
RANKS = 2
SIZES = ((8192, 1024), (4096, 256))
"""N = K, and tokens."""
LAYERS = (1, 4)
"""One after the other in a model."""
WAYS = ("graph", "eager", "host", "graphed", "compiled", "reduce-overhead")
TIMES, CALLS = 5, 30
"""Medians are of so many times so many calls."""


class RowShard(nn.Module):
    """Row tensor parallelism of a linear layer (Shoeybi et al., arXiv 1909.08053, §3), in no more steps than that has
    products and collectives: nothing is checked."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        size = linear.in_features // RANKS
        self._columns = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
        self.weight = nn.Parameter(linear.weight.detach()[:, self._columns].clone())
        self.bias = linear.bias

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        y_BN: torch.Tensor = _RowProduct.apply(x_BK, self.weight, self.bias, self._columns)
        return y_BN


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BK: torch.Tensor, w_NS: torch.Tensor, bias: torch.Tensor, columns: slice) -> torch.Tensor:
        x_BS = x_BK[:, columns]
        ctx.save_for_backward(x_BS, w_NS)
        y_BN = F.linear(x_BS, w_NS, bias if columns.start == 0 else None)
        dist.all_reduce(y_BN)
        return y_BN

    @staticmethod
    def backward(ctx: Any, grad_y_BN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_BS, w_NS = ctx.saved_tensors
        grad_BS = grad_y_BN @ w_NS
        stacked = grad_BS.new_empty(RANKS * len(grad_BS), grad_BS.shape[1])
        work = all_gather(stacked, grad_BS, async_op=True)
        grads = grad_y_BN.t() @ x_BS, grad_y_BN.sum(0)
        work.wait()
        return torch.cat(stacked.chunk(RANKS), dim=1), *grads, None


def _block_shock(linear: nn.Linear, tokens: int, **picks: str) -> nn.Module:
    return BlockShockLinear(linear, tokens=tokens, **picks)  # type: ignore[arg-type]


ROWS: dict[str, Callable[[nn.Linear, int], nn.Module]] = {
    "nn.Linear, whole on each GPU": lambda linear, tokens: linear,
    "a shard of nn.Linear, nccl": lambda linear, tokens: RowShard(linear),
    "block_shock gathered, nccl": partial(_block_shock, kernel="gathered"),
    "block_shock auto, auto": partial(_block_shock, combine="auto"),
}


def model_of(row: str, N: int, B: int, layers: int, device: torch.device) -> nn.Sequential:
    """Linear layers (N, N) in bf16, or what a row puts in their place for B tokens."""
    torch.manual_seed(0)  # the same on all ranks
    linears = (nn.Linear(N, N, device=device, dtype=torch.bfloat16) for _ in range(layers))
    return nn.Sequential(*(ROWS[row](linear, B) for linear in linears))


def times(row: str, N: int, B: int, layers: int, ways: tuple[str, ...] = WAYS) -> dict[str, list[float] | str]:
    """Microseconds of forward and backward of such a model, by way; or why there are none. Runs on each rank."""
    on_gpu = torch.cuda.is_initialized()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    model, wait = model_of(row, N, B, layers, device), torch.cuda.synchronize if on_gpu else lambda: None
    x_BK, grad_BN = torch.randn(2, B, N, device=device, dtype=torch.bfloat16)
    x_BK.requires_grad_()

    def by(forward: Callable[[torch.Tensor], torch.Tensor], model: nn.Module = model) -> Callable[[], None]:
        leaves = [x_BK, *model.parameters()]

        def call() -> None:
            for leaf in leaves:
                leaf.grad = None
            forward(x_BK).backward(grad_BN)

        return call

    def captured() -> Callable[[], None]:
        leaves = [x_BK, *model.parameters()]
        return timing.capture(lambda: torch.autograd.grad(model(x_BK), leaves, grad_BN)).replay

    def graphed() -> Callable[[], None]:
        another = model_of(row, N, B, layers, device)  # whose forward is another one then
        return by(torch.cuda.make_graphed_callables(another, (x_BK,)), another)

    def compiled(mode: str | None) -> Callable[[], None]:
        torch.compiler.reset()
        call = by(torch.compile(model, mode=mode))
        return lambda: (torch.compiler.cudagraph_mark_step_begin(), call())[1]

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "graph": captured,
        "eager": lambda: by(model),
        "host": lambda: by(model),
        "graphed": graphed,
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
    yield f"| N = K | tokens | layers | row | its graph, µs | eager ÷ graph | host alone | {' | '.join(WAYS[3:])} |"
    yield "|" + "---|" * (4 + len(WAYS))
    for model in found["models"]:
        spent = model["microseconds"]
        graph = spent["graph"] if isinstance(spent["graph"], list) else None
        told = f"{statistics.median(graph):.0f} ± {_half(graph):.0f}" if graph else "–"
        cells = [_cell(spent.get(way, ""), graph) for way in WAYS[1:]]
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
