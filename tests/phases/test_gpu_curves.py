"""Phase 5 on a GPU: recipes train in bf16 on the sparse tensor cores, beside float32 parameters, and learn; by graphs
that do what eager steps do, and draw anew at each replay."""

from __future__ import annotations

import math

import pytest
import torch
from gpus import needs_a_gpu
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockshock.machine import memory
from blockshock.models import build_task
from blockshock.phases import curve_case, curves
from blockshock.phases.pupil import Curve, Pupil
from blockshock.ranks import Ranks
from blockshock.training import any_recipe_of, captured
from blockshock.training.recipes import estimators, storage

pytestmark = [pytest.mark.gpu, needs_a_gpu]
RECIPES = (
    *("ste", "sr_ste", "fst", "s_ste", "step", "pruned", "supermask"),
    *("activation:where=post:masks=rows", "dropout24"),
)
SCHEDULED = ("dense", "sr_ste:every=3", "fst:every=3:dense_from=20", "s_ste", "step:latest=12", "pruned:dense_until=12")
"""Recipes whose steps are of several kinds, and those of which all are alike."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_on_the_sparse_tensor_cores(gpu_rank: Ranks, recipe: str) -> None:
    case = curve_case(recipe, "digits", "cuda", "bf16", 0, 60, 1, None)
    assert gpu_rank.run(curves.obstacle, case)[0] is None
    (found,) = gpu_rank.run(curves.run, case)
    assert found.failure(case) is None
    assert ("cusparselt" if any_recipe_of(recipe).is_24 else "bsr") in found.algorithm
    assert found.replaced == 8
    assert found.eager > 0


def _pupil(recipe: str, steps: int, task: str = "digits", seed: int = 0) -> Pupil:
    device, found = torch.device("cuda", torch.cuda.current_device()), build_task(task)
    found.load(device, None)
    return Pupil(found, device, recipe, steps, seed)


def _learned() -> tuple[set[torch.dtype], set[torch.dtype], Curve]:
    found = _pupil("fst:every=1:dense_from=3", 4, "text")
    multiplied = {storage.packed.values.dtype for storage in found.storages}
    return multiplied, {held.dtype for held in found.model.parameters()}, found.learn([2, 4])


def test_products_are_in_bf16_and_parameters_in_float32(gpu_rank: Ranks) -> None:
    ((multiplied, held, curve),) = gpu_rank.run(_learned)
    assert (multiplied, held) == ({torch.bfloat16}, {torch.float32})
    assert curve.bits[1] < curve.bits[0] < 8
    assert [flips > 0 for flips in curve.flip_rate] == [True, False]


def _eager_and_captured(recipe: str, task: str, steps: int) -> tuple[list[Curve], int]:
    """Eager twice, then by graphs; all draw from torch's own generator, and by attention without atomic additions: what
    their order changes in a gradient is, some twenty steps later, as much as a fault would be."""
    found = []
    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(storage, "stream", lambda *_: None)
        plain, captures = captured.capture, list[object]()
        patch.setattr(captured, "capture", lambda *args: captures.append(args) or plain(*args))
        for is_captured in (False, False, True):
            pupil = _pupil(recipe, steps, task)
            if is_captured:
                pupil.capture()
            found.append(pupil.learn(list(range(2, steps + 1, 2))))
            del pupil
            memory.release()
    return found, len(captures)


def _apart(one: Curve, other: Curve) -> float:
    return max(abs(ours - theirs) for ours, theirs in zip(one.bits, other.bits, strict=True))


@pytest.mark.parametrize("recipe", [*SCHEDULED, *RECIPES[6:]])
def test_replayed_steps_are_the_eager_ones(gpu_rank: Ranks, recipe: str) -> None:
    """Bit for bit, if eager ones are the same twice; of as many kinds as there are."""
    (((eager, again, graphs), captures),) = gpu_rank.run(_eager_and_captured, recipe, "digits", 24)
    assert _apart(graphs, eager) <= 3 * _apart(again, eager)
    if again.bits == eager.bits:
        assert graphs.flip_rate == eager.flip_rate
    assert captures == {"dense": 1, "sr_ste:every=3": 2, "fst:every=3:dense_from=20": 4, "s_ste": 1}.get(
        recipe, captures
    )
    assert 1 <= captures <= 4


@pytest.mark.parametrize("recipe", ["dense", "fst:every=3:dense_from=20"])
def test_replayed_steps_of_a_language_model_learn_as_eager_ones(gpu_rank: Ranks, recipe: str) -> None:
    (((eager, again, graphs), _),) = gpu_rank.run(_eager_and_captured, recipe, "text", 24)
    assert graphs.bits[-1] < 5
    assert _apart(graphs, eager) <= max(5 * _apart(again, eager), 0.02)


def _replayed_draws(seed_within: bool) -> list[torch.Tensor]:
    """What two replays draw of one gradient; and two more, after torch's generator was set back."""
    device = torch.device("cuda", torch.cuda.current_device())
    grad_BN = torch.randn(128, 256, device=device, dtype=torch.bfloat16, generator=torch.Generator(device))
    held_NB = torch.empty(256, 128, device=device, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        if not seed_within:
            words = torch.randint(2**31 - 1, (2,), dtype=torch.int32, device=device)
            patch.setattr(estimators.torch, "randint", lambda *_, **__: words)

        def draw() -> None:
            held_NB.copy_(estimators.drawn(grad_BN, estimators.stream(device, 0, 0)))

        draw()
        replay = captured.capture(draw, torch.cuda.graph_pool_handle())
    found = []
    for number in range(4):
        if number % 2 == 0:
            torch.manual_seed(7)
        replay()
        found.append(held_NB.cpu())
    return found


def test_each_replay_draws_anew_and_a_seed_makes_the_draws(gpu_rank: Ranks) -> None:
    ((first, second, first_again, second_again),) = gpu_rank.run(_replayed_draws, True)
    assert not torch.equal(first, second)
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)


def test_a_graph_that_draws_the_same_again_is_found(gpu_rank: Ranks) -> None:
    ((first, second, *_),) = gpu_rank.run(_replayed_draws, False)
    assert torch.equal(first, second)


def _compiled() -> tuple[float | None, str | None]:
    case = curve_case("dense", "digits", "cuda", "bf16", 0, 60, 1, None)
    task = build_task("digits")
    task.load(torch.device("cuda", torch.cuda.current_device()), None)
    return curves._compiled(case, task)


def test_a_compiled_model_is_captured_too(gpu_rank: Ranks) -> None:
    ((seconds, why),) = gpu_rank.run(_compiled)
    assert why is None
    assert seconds is not None
    assert 0 < seconds < math.inf
