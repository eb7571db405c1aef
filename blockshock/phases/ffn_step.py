"""How long does a feed-forward block take forward and backward, and what keeps it 2:4, and in how much memory?

All of a training step but the optimizer's own update, which is the same for all rows: recipes of layers add to
gradients, look for masks and pack weights again after each step, and that is timed with the passes. Weights are of the
dtype of the products. Where masks come every k-th step, the time is that of the mean step of such a cycle.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from blockshock.machine import memory
from blockshock.measure import Work, timing
from blockshock.methods import Method, Shape
from blockshock.methods.with_recipe import WithRecipe
from blockshock.nn.method_linear import MethodLinear
from blockshock.phases.builds import BLOCK_SHARE, PairBlocks, over_builds, pairs_in_blocks, protocol_of_ranks
from blockshock.phases.case import this_device
from blockshock.phases.compare import FEWEST_ROUNDS, PairResult
from blockshock.phases.ffn import Block, FFNCase, build
from blockshock.phases.forward import TimingResult
from blockshock.phases.stage_times import StageTimes, time_stages
from blockshock.training import Training, block_recipe_of, is_of_blocks
from blockshock.training.recipes.packing import sparse_cores

STAGED = "dense_single"
"""The row of the layers whose dense products say their stages: those of torch's own do not."""
Part = tuple[float, timing.Call]
"""A call, and its share of the mean step."""


class Step:
    """Both passes of a block, and what keeps its weights 2:4."""

    def __init__(self, block: Block) -> None:
        self._block, self._parameters = block, list(block.model.parameters())
        # What a recipe does before and after an optimizer's step it does here around none.
        self._nobody = torch.optim.SGD(self._parameters, lr=0.0)

    def forward(self) -> torch.Tensor:
        return self._block.call(self._block.x_BD)

    def passes(self) -> torch.Tensor:
        """Forward and backward: the gradient of x, and of all parameters."""
        wanted = [self._block.x_BD, *self._parameters]
        grad_x_BD, *grads = torch.autograd.grad(self.forward(), wanted, self._block.grad_y_BD)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad
        return grad_x_BD

    def __call__(self, masks: bool = True) -> None:
        """Args:
        masks: look for new ones, where the recipe ever does.
        """
        self.passes()
        for storage in self._block.storages:
            storage.steps, storage.every = storage.recipe.first_sparse(), int(masks)
            storage.before_step(self._nobody, has_closure=False)
            storage.after_step([storage.parameter])

    def parts(self) -> list[Part]:
        """Calls whose mean, each with its share, is the mean step. A captured one always does the same."""
        every = max((storage.recipe.every for storage in self._block.storages), default=1)
        if every == 1:
            return [(1.0, self)]
        return [(1 / every, self), (1 - 1 / every, partial(self, masks=False))]


def mean_rounds(shares: Sequence[float], samples: Sequence[list[float]]) -> list[float]:
    """Of each round the mean of its calls, each with its share."""
    return [sum(map(float.__mul__, shares, times)) for times in zip(*samples, strict=True)]


def run(case: FFNCase, mode: str, rounds: int, warmup: int, flush: bool) -> TimingResult:
    """Build and time the block on this rank."""
    protocol = protocol_of_ranks(mode, rounds, warmup, flush)

    def take(block: Block, share: timing.Protocol) -> list[float]:
        return _timed(Step(block), share)

    return over_builds(partial(build, case), protocol, partial(_described, case), take)


def _timed(step: Step, protocol: timing.Protocol) -> list[float]:
    shares, calls = zip(*step.parts(), strict=True)
    return mean_rounds(shares, timing.time_calls(calls, this_device(), protocol))


def one_build(case: FFNCase, mode: str, rounds: int, warmup: int, flush: bool) -> list[float]:
    """Seconds of a few rounds of one build, to tell the fast from the slow."""
    few = max(rounds // BLOCK_SHARE, FEWEST_ROUNDS)
    return _timed(Step(build(case)), protocol_of_ranks(mode, few, warmup, flush))


def pair(first: FFNCase, second: FFNCase, mode: str, rounds: int, warmup: int, flush: bool) -> PairResult:
    """Time the two in pairs, block by block built anew; the second is a dense block."""
    shares: list[float] = []
    told: list[tuple[str, dict[str, Work]]] = []

    def calls(index: int, block: Block) -> list[timing.Call]:
        step = Step(block)
        if index:
            return [step] * len(shares)  # which those of the first, made before, have set
        shares[:], parts = zip(*step.parts(), strict=True)
        told[:] = [(_algorithm(first, block), _work(first, block))]
        return list(parts)

    stream = random.Random(f"{first.id} {second.id} {first.seed}")
    cases = (first, second)
    found, _ = pairs_in_blocks(
        lambda index: build(cases[index]), calls, stream, protocol_of_ranks(mode, rounds, warmup, flush)
    )
    ours, theirs = (
        [mean_rounds(shares, parts) for parts in zip(*(getattr(one, side) for one in found), strict=True)]
        for side in ("first", "second")
    )
    return PairResult(PairBlocks(ours, theirs, found[0].pilot, found[0].repeated), *told[0])


def _described(case: FFNCase, block: Block, protocol: timing.Protocol) -> TimingResult:
    """All but the samples, of one build."""
    device, step = this_device(), Step(block)
    with memory.peak_bytes(device) as steady:
        step()
    weight_bytes = block.weight_bytes()
    alone = {"forward": step.forward} | ({"forward_and_backward": step.passes} if block.storages else {})
    result = TimingResult(
        builds=[],
        eager_samples=[],
        stages={},
        copied_bytes=0,
        alone={name: timing.time_call(call, device, protocol) for name, call in alone.items()},
        weight_bytes=weight_bytes,
        estimated_weight_bytes=_estimate(case),
        building_bytes=block.building_bytes,
        steady_bytes=weight_bytes + steady[0],
        algorithm=_algorithm(case, block),
        work=_work(case, block),
    )
    if protocol.mode == "cuda_graph":
        result.eager_samples = _timed(step, replace(protocol, mode="cuda_events"))
    if not case.compiled:
        staged = step if case.recipe is not None else Step(build(case, layers=STAGED))
        stages = _stages(staged, device, protocol)
        result.stages, result.copied_bytes = stages.seconds, stages.copied_bytes
    return result


def _stages(step: Step, device: torch.device, protocol: timing.Protocol) -> StageTimes:
    """Of the mean step."""
    rounds: dict[str, list[float]] = defaultdict(lambda: [0.0] * protocol.rounds)
    copied = 0
    for share, call in step.parts():
        found = time_stages(call, device, protocol)
        copied = max(copied, found.copied_bytes)
        for name, times in found.seconds.items():
            rounds[name] = [before + share * seconds for before, seconds in zip(rounds[name], times, strict=True)]
    return StageTimes(dict(rounds), copied)


def _algorithm(case: FFNCase, block: Block) -> str:
    """What multiplied."""
    if case.recipe is None:
        return "dense, compiled" if case.compiled else "dense"
    layers = [one.layer.algorithm for one in block.model.modules() if isinstance(one, MethodLinear)]
    return " | ".join(dict.fromkeys(layers)) or ("cusparselt" if _multiplies_24(case) else "dense, with zeros")


def _multiplies_24(case: FFNCase) -> bool:
    """Whether the sparse tensor cores multiply by such activations, or weights."""
    return sparse_cores(case.N, case.K, case.torch_dtype, this_device())


def _estimate(case: FFNCase) -> int:
    """Bytes of the weights, by arithmetic."""
    itemsize = case.torch_dtype.itemsize
    if case.recipe is None or is_of_blocks(case.recipe):
        return 2 * case.N * case.K * itemsize
    training = Training(case.torch_dtype)
    shapes = [
        Shape(*size, itemsize, 1, True, training, picks=case.picks) for size in ((case.N, case.K), (case.K, case.N))
    ]
    return sum(WithRecipe.estimate(shape).steady for shape in shapes)


def _work(case: FFNCase, block: Block) -> dict[str, Work]:
    """Of the six products: what lies between them need not reach the memory."""
    layers = [one.layer for one in block.model.modules() if isinstance(one, MethodLinear)]
    flops = sum((_of_layer(layer, case.B) for layer in layers), Counter[str]()) or _of_block(case)
    weights, tokens = (size * case.K * case.torch_dtype.itemsize for size in (2 * case.N, case.B))
    return {"products": Work(flops, weights + 2 * tokens, weights + tokens, weights + 2 * tokens)}


def _of_layer(layer: Method, tokens: int) -> Counter[str]:
    """Operations of the three products of a layer with a recipe, by unit; that of ∇W is in a format where y's is."""
    (forward,), other = layer.operands()
    flops = Counter[str]()
    for operand in (forward, (other or [forward])[0]):
        flops[operand.unit] += 2 * tokens * operand.values
    sampled = isinstance(layer, WithRecipe) and layer.recipe.samples and forward.unit.endswith("2:4")
    unit = "dense" if forward.unit == "2:4" and not sampled else forward.unit
    flops[unit] += (1 if sampled else 2) * tokens * layer.N * layer.K
    return flops


def _of_block(case: FFNCase) -> Counter[str]:
    """The same of all six, with dense weights. Of one over features that are thinned in part, that part is 2:4."""
    each, sparse = 2 * case.B * case.N * case.K, 0.0
    if case.recipe is not None and _multiplies_24(case):
        recipe = block_recipe_of(case.recipe)
        sparse = (2 if recipe.both_ways else 2 - recipe.dense) * (2 if recipe.gradient == "sp24" else 1)
    return +Counter({"dense": round((6 - sparse) * each), "2:4": round(sparse * each / 2)})
