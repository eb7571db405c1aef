"""Training steps as CUDA graphs: one of each kind of step, captured when the first of that kind comes.

A graph does again what it was captured doing, and what a recipe does at a step goes by what the host counts. So a step
that is captured counts for nothing, and what is replayed is counted after it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch.optim import AdamW, Optimizer

from blockshock.errors import InputError
from blockshock.training.recipes import RecipeStorage
from blockshock.training.sparse import StepAdamW

Call = Callable[[], object]


class StepGraphs:
    """The graphs of the steps of a model. All that they read, batches and rates too, must stay where it lies.

    They share their memory, so they are to be replayed one after another. They draw from torch's own generator: each
    replay anew, and after ``torch.manual_seed`` what eager steps would draw from it.

    Args:
        storages: of the weights that a recipe trains.
        optimizer: of the model: an AdamW whose rate is a tensor, ``capturable``, before its first step.

    Raises:
        InputError: it is another optimizer, whose first step may make a state that a graph would make at each.
    """

    def __init__(self, storages: Sequence[RecipeStorage], optimizer: Optimizer, device: torch.device) -> None:
        if not isinstance(optimizer, AdamW):
            raise InputError(f"steps of AdamW alone are captured, got {type(optimizer).__name__}: make eager ones")
        self._storages, self._optimizer, self._device = storages, optimizer, device
        self._replays: dict[Hashable, Call] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        _begin(optimizer)

    def ready(self, passes: Call, step: Call) -> Call:
        """The call that makes the step that comes.

        Args:
            passes: forward and backward, which begin each step. They are made once by themselves before a capture, for
                kernels are loaded and chosen in the first ones.
            step: all of it.
        """
        kind = self._kind()
        if kind not in self._replays:
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                passes()
            self._optimizer.zero_grad()
            self._replays[kind] = capture(step, self._pool)
        replay = self._replays[kind]

        def replay_and_count() -> None:
            replay()
            self._count()

        return replay_and_count

    def _kind(self) -> Hashable:
        of_optimizer = self._optimizer.kind() if isinstance(self._optimizer, StepAdamW) else None
        return of_optimizer, *(storage.kind() for storage in self._storages)

    def _count(self) -> None:
        if isinstance(self._optimizer, StepAdamW):
            self._optimizer.advance()
        for storage in self._storages:
            storage.advance(self._optimizer)


def capture(step: Call, pool: object) -> Call:
    """What replays it. Captured, it has not been made yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
        step()
    return graph.replay


def _begin(optimizer: AdamW) -> None:
    """Give it the state that its first step begins with, which a graph of that step would begin with at each."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not (state := optimizer.state[parameter]):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
