"""Phase 5 on a rank: recipes learn, a seed gives the same bits again, and what does neither is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from blockshock.models.tasks import TASKS, Task, Text
from blockshock.phases import CurveCase, curve_case, curves, pupil
from blockshock.phases.curves import CurvesResult
from blockshock.phases.pupil import Curve, Pupil
from blockshock.plugin.learned import describe_curves
from blockshock.ranks import Ranks

CPU = torch.device("cpu")


def case(recipe: str, steps: int = 4, task: str = "text") -> CurveCase:
    return curve_case(recipe, task, "cpu", "fp32", 0, steps, 1, None)


def taught(recipe: str, steps: int = 4, seed: int = 0) -> Pupil:
    task = Text()
    task.load(CPU, None)
    return Pupil(task, CPU, recipe, steps, seed)


def linears(task: Task, device_type: str) -> dict[str, nn.Linear]:
    with torch.device("meta"):
        return pupil.linears_meant(task.skeleton(device_type), task)


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_says_all_that_it_must(name: str) -> None:
    task = TASKS.get(name)()
    assert 0 < task.margin < task.learnt
    for device_type in ("cpu", "cuda"):
        sizes = {tuple(one.weight.shape) for one in linears(task, device_type).values()}
        assert sizes
        assert all(size % 64 == 0 for shape in sizes for size in shape), "sizes that kernels of 2:4 take"
        assert task.tokens(device_type) % 64 == 0
    with pytest.raises(NotImplementedError, match="Task has no skeleton"):
        Task().skeleton("cpu")


def test_all_recipes_begin_with_the_same_weights_and_see_the_same_batches() -> None:
    dense, sparse, other = taught("dense"), taught("fst"), taught("dense", seed=1)
    for name, held in dense.model.state_dict().items():
        assert torch.equal(held, sparse.model.state_dict()[name]), name
        assert not torch.equal(held, other.model.state_dict()[name]) or "norm" in name
    batches = [[one.task.batch(one._stream)[0] for _ in range(3)] for one in (dense, sparse, other)]
    assert all(map(torch.equal, batches[0], batches[1]))
    assert not any(map(torch.equal, batches[0], batches[2]))


def test_a_recipe_trains_the_feed_forward_parts_and_goes_by_its_schedule() -> None:
    one = taught("fst:every=2:dense_from=3", steps=4)
    assert len(one.storages) == 4
    found = one.learn([1, 2, 3, 4])
    assert [flips > 0 for flips in found.flip_rate] == [False, True, False, False], "masks at step 2, dense from 3"
    assert {storage.steps for storage in one.storages} == {4}
    assert len(found.bits) == len(found.seconds) == 4
    assert found.seconds == sorted(found.seconds)


def test_pruned_begins_with_what_dense_training_came_to() -> None:
    pruned, dense = taught(case("pruned", 6).recipe, steps=6), taught("dense", steps=6)
    for one in (pruned, dense):
        one.learn([3])
    for name, held in pruned.model.state_dict().items():
        if not name.rpartition(".")[2].startswith("recipe"):
            right = dense.model.state_dict()[name]
            kept = pruned.model.state_dict().get(f"{name.removesuffix('weight')}recipe_mask", torch.tensor(True))
            torch.testing.assert_close(held, right.where(kept, 0), rtol=1e-4, atol=1e-5)
    assert all(storage.is_sparse for storage in pruned.storages)


def test_step_switches_by_its_own_optimizer() -> None:
    one = taught("step:latest=2", steps=4)
    assert not any(storage.is_sparse for storage in one.storages)
    one.learn([4])
    assert all(storage.is_sparse for storage in one.storages)
    assert type(one._optimizer).__name__ == "StepAdamW"


def _run_with(planted: str, found: CurveCase) -> CurvesResult:
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[planted](patch)
        return curves.run(found)


def forgets_its_seed(patch: pytest.MonkeyPatch) -> None:
    plain, drawn = pupil._of_seed, iter(range(100))
    patch.setattr(pupil, "_of_seed", lambda spec, seed: plain(spec, next(drawn)))


def gradients_of_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "none": lambda patch: None,
    "forgets its seed": forgets_its_seed,
    "gradients of nothing": gradients_of_nothing,
}


@pytest.mark.parametrize(
    ("planted", "same", "learns"),
    [("none", True, True), ("forgets its seed", False, True), ("gradients of nothing", True, False)],
)
def test_what_does_not_learn_or_is_not_the_same_again_is_found(
    cpu_ranks: Ranks, planted: str, same: bool, learns: bool
) -> None:
    found, *_ = cpu_ranks.run(_run_with, planted, replace(case("fst", 12), picks={"recipe": "fst:every=4"}))
    assert found.same_again is same
    said = found.failure(case("fst", 12))
    assert (said is None) is learns, said
    if not learns:
        assert said is not None
        assert said.startswith("seed 0: nothing was learned: the loss went from 8")


def result(bits: list[float]) -> CurvesResult:
    curve = Curve(bits, [0.5, 1.0], [0.2, 0.0])
    return CurvesResult([2, 4], [curve], 8.0, True, "some text", "fst", 10, 4, "dense, with zeros")


def test_a_loss_that_is_no_number_is_nothing_learned() -> None:
    assert result([5.0, 4.0]).failure(case("fst")) is None
    assert "from 8 to nan bits" in (result([5.0, math.nan]).failure(case("fst")) or "")
    assert "must fall by 1.5" in (result([5.0, 6.6]).failure(case("fst")) or "")


def test_what_is_saved_names_no_path() -> None:
    told = describe_curves(replace(case("fst"), corpus="/home/somebody/lm_corpus.txt"), result([5.0, 4.0]))
    assert "somebody" not in str(told)
    assert told["corpus"] == "lm_corpus.txt"
    assert describe_curves(case("fst"), result([5.0, 4.0]))["corpus"] is None
    assert (told["step_ms"], told["last_bits"], told["mean_flip_rate"]) == ([250.0], 4.0, 0.1)
    assert result([5.0, 4.0]).step_seconds() == [0.25, 0.25]


def test_a_compiled_model_is_timed_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Text()
    task.load(CPU, None)
    monkeypatch.setattr(curves, "this_device", lambda: CPU)
    called = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: called.append(model) or model)
    seconds, why = curves._compiled(case("dense"), task)
    assert seconds is not None
    assert (len(called), why) == (1, None)
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: 1 / 0)
    assert curves._compiled(case("dense"), task) == (None, "ZeroDivisionError: division by zero")


def test_what_cannot_run_is_said_before_it_is_built(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(curves.obstacle, case("fst"))[0] is None
    odd = replace(case("fst"), N=66)
    assert "N must be a multiple of 4, got 66" in (cpu_ranks.run(curves.obstacle, odd)[0] or "")
