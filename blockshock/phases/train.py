"""Phase 3: how long does a training step take (forward, backward, optimizer, packing again), and in how much memory?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from blockshock.machine import memory
from blockshock.matrices import generator
from blockshock.measure import Work, timing
from blockshock.methods import Method
from blockshock.phases.builds import over_builds, protocol_of_ranks
from blockshock.phases.case import Built, Case, build
from blockshock.phases.forward import TimingResult, described
from blockshock.phases.stage_times import StageTimes, time_stages
from blockshock.stages import stage
from blockshock.training import MaskedStorage, RecipeStorage, SparseStorage, Storage, optimizer_of

Found = TypeVar("Found")
Sparse = SparseStorage | RecipeStorage
PACED = (MaskedStorage, RecipeStorage)
"""Those that compress, or look for a mask, every so many steps only."""


@dataclass
class TrainingResult(TimingResult):
    """What one rank measured of a training step.

    ``builds`` and ``stages`` are of the whole step; where it compresses every k-th time only, of the mean step of a
    cycle of k. ``alone`` has the forward pass, forward and backward, the packing again of all weights, and a device
    copy of their kept values.

    Attributes:
        parameter_bytes, gradient_bytes, state_bytes: of what is trained, its gradients and the optimizer's state.
        training_bytes: of these and of the packings, each storage once.
    """

    parameter_bytes: int
    gradient_bytes: int
    state_bytes: int
    training_bytes: int


class Step:
    """One training step of a built case, with a fixed gradient of the output."""

    def __init__(self, case: Case, built: Built) -> None:
        assert case.optimizer is not None
        self.method, device = built.method, built.x_BK.device
        self.parameters = list(self.method.parameters())
        self.optimizer = optimizer_of(case.optimizer).build(self.parameters)
        for module in self.method.modules():
            if isinstance(module, RecipeStorage):
                module.skip_to_sparse()
        self._x_BK = built.x_BK.detach().requires_grad_()
        noise_BN = torch.randn(case.B, case.N, device=device, generator=generator(device, case.seed, 7))
        self._grad_y_BN = noise_BN.to(case.torch_dtype)

    def forward(self) -> torch.Tensor:
        return self.method(self._x_BK)

    def forward_and_backward(self) -> torch.Tensor:
        grad_x_BK, *grads = torch.autograd.grad(self.forward(), [self._x_BK, *self.parameters], self._grad_y_BN)
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        return grad_x_BK

    def __call__(self) -> None:
        self.forward_and_backward()
        with stage("optimizer"):
            self.optimizer.step()


def run(case: Case, mode: str, rounds: int, warmup: int, flush: bool) -> TrainingResult:
    """Build and time training steps on this rank; all ranks call it together."""
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)

    def take(built: Built, share: timing.Protocol) -> list[float]:
        step, device = Step(case, built), built.x_BK.device
        return _over_cycle(storages_of(built.method), lambda: timing.time_call(step, device, share), _cycle)

    return over_builds(lambda: build(case), protocol, partial(_described, case), take)


def _described(case: Case, built: Built, protocol: timing.Protocol) -> TrainingResult:
    """All but the samples, of one build."""
    method, step = built.method, Step(case, built)

    def alone() -> dict[str, timing.Call]:
        return {"forward": step.forward, "forward_and_backward": step.forward_and_backward, **_packing(method)}

    def stages_of(*call: Any) -> StageTimes:
        return _over_cycle(storages_of(method), lambda: time_stages(*call), _cycle_of_stages)

    found = described(case, built, step, protocol, alone, backward=True, stages_of=stages_of)
    for storage in storages_of(method):
        storage.refresh()  # a packing whose memory is the parameter's, packed by itself, counts as a change of that
    state = [t for values in step.optimizer.state.values() for t in values.values() if isinstance(t, torch.Tensor)]
    grads = [parameter.grad for parameter in step.parameters if parameter.grad is not None]
    return TrainingResult(
        **vars(found) | {"work": work_of_step(case, method)},
        parameter_bytes=memory.held_bytes(step.parameters),
        gradient_bytes=memory.held_bytes(grads),
        state_bytes=memory.held_bytes(state),
        training_bytes=memory.held_bytes([*method.tensors(), *grads, *state]),
    )


def work_of_step(case: Case, method: Method) -> dict[str, Work]:
    """Of both passes, the gradient of what is multiplied, and the update of all parameters and states."""
    assert case.optimizer is not None
    work = method.work(case.B, backward=True)
    forward, other = method.operands()
    gradient = 2 * case.B * sum(operand.values for operand in forward)
    work["products"] += Work(Counter(dense=gradient))
    held, states = memory.held_bytes(method.parameters()), optimizer_of(case.optimizer).states
    # Float32 parameters of float32 products may be what was multiplied: they are not read for the first time.
    first = held * states + (held if case.torch_dtype.itemsize < 4 else 0)
    every = _every([storage for storage in storages_of(method) if isinstance(storage, MaskedStorage)])
    trained = (module for module in method.modules() if isinstance(module, Storage))
    own = sum(one.packed.operand.values for one in trained if _is_packing(one))
    values = (sum(operand.values for operand in [*forward, *(other or [])]) - own) * case.torch_dtype.itemsize
    packed = values // every if every else 0
    return work | {"update": Work(first_bytes=first, written_bytes=held * (1 + states) + packed)}


def _is_packing(storage: Storage) -> bool:
    """Whether the parameter is the memory of what is multiplied, where nothing is packed after a step."""
    values, parameter = storage.packed.values, storage.parameter
    return (values.dtype, values.data_ptr()) == (parameter.dtype, parameter.data_ptr())


def storages_of(method: Method) -> list[Sparse]:
    """The trained 2:4 weights of a method on this rank."""
    return [module for module in method.modules() if isinstance(module, SparseStorage | RecipeStorage)]


def _over_cycle(
    storages: list[Sparse], measure: Callable[[], Found], mean: Callable[[Found, Found, int], Found]
) -> Found:
    """What is measured of a step. A captured step always does the same, so a cycle is put together from two."""
    every = _every(storages)

    def measured(compressing: bool) -> Found:
        for storage in storages:
            if isinstance(storage, PACED):
                storage.every = int(compressing)
        return measure()

    if every <= 1:
        return measured(compressing=bool(every))
    found = mean(measured(True), measured(False), every)
    for storage in storages:
        if isinstance(storage, PACED):
            storage.every = every
    return found


def _every(storages: list[Sparse]) -> int:
    """How many steps lie from one packing again, or mask, to the next; 0 for never."""
    return max((storage.every for storage in storages if isinstance(storage, PACED)), default=1)


def _cycle(once: list[float], other: list[float], every: int) -> list[float]:
    return [(first + (every - 1) * rest) / every for first, rest in zip(once, other, strict=True)]


def _cycle_of_stages(once: StageTimes, other: StageTimes, every: int) -> StageTimes:
    mean = {
        name: _cycle(times, other.seconds.get(name, [0.0] * len(times)), every) for name, times in once.seconds.items()
    }
    return replace(once, seconds=mean)


def _packing(method: Method) -> dict[str, Any]:
    """Calls that pack all weights again from their parameters, and that copy their kept values."""
    storages = storages_of(method)
    if not storages:
        return {}

    @torch.no_grad()
    def pack() -> None:
        for storage in storages:
            storage.pack()

    copies = [(torch.empty_like(storage.packed.values), storage.packed.values) for storage in storages]
    return {"pack": pack, "copy": lambda: [copy.copy_(values) for copy, values in copies]}
