"""Phase 5 on a rank: recipes learn, a seed gives the same bits again, and what does neither is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from blockshock.errors import InputError
from blockshock.models.tasks import TASKS, Task, Text
from blockshock.nn.ffn import SparseFFN
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


BLOCK = "activation:where=post:masks=rows:act=gelu"


@pytest.mark.parametrize("recipe", [BLOCK, "dropout24"])
@pytest.mark.parametrize("name", TASKS.names())
def test_a_recipe_of_blocks_trains_the_same_parts_by_sparse_activations(name: str, recipe: str) -> None:
    task = TASKS.get(name)()
    task.load(CPU, None)
    dense, sparse = (Pupil(task, CPU, one, 2, 0) for one in ("dense", recipe))
    kinds = [type(module) for module in sparse.model.modules()]
    assert (sparse.replaced, kinds.count(SparseFFN), sparse.storages) == (4, 2, [])
    held = [list(one.model.parameters()) for one in (dense, sparse)]
    assert all(map(torch.equal, *held)), "the same weights, in the same order"
    before = [one.bits() for one in (dense, sparse)]
    assert (before[0] == before[1]) is (recipe == "dropout24"), "dense in evaluation"
    sparse.learn([2])
    assert not any(map(torch.equal, *held))


def test_a_causal_model_with_masks_of_rows_sees_nothing_of_what_is_to_come() -> None:
    bytes_BT = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(0))
    later_BT = torch.cat([bytes_BT[:, :13], bytes_BT[:, 13:].flip(1)], 1)
    for recipe, sees in ((BLOCK, False), ("activation:where=post:act=gelu", True)):
        model = taught(recipe).model.eval()
        with torch.no_grad():
            assert torch.allclose(model(bytes_BT)[:, :13], model(later_BT)[:, :13], atol=1e-6) is not sees


def test_the_activation_function_is_the_task_s() -> None:
    assert case("dropout24").recipe == "dropout24:act=gelu"
    assert case("activation:masks=rows", task="text:act=relu2").recipe == "activation:masks=rows:act=relu2"
    assert case("fst", 4).recipe == "fst:every=1:dense_from=3"
    task = Text("relu2")
    z = torch.tensor([-1.0, 3.0])
    assert task.skeleton("cpu").blocks[0].act(z).tolist() == [0.0, 9.0]  # type: ignore[union-attr, operator, index]
    with pytest.raises(InputError, match="act is one of gelu, relu, relu2, got act=tanh"):
        Text("tanh")


def _run_with(planted: str, found: CurveCase) -> CurvesResult:
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[planted](patch)
        return curves.run(found)


def forgets_its_seed(patch: pytest.MonkeyPatch) -> None:
    plain, drawn = pupil._of_seed, iter(range(100))
    patch.setattr(pupil, "_of_seed", lambda spec, seed: plain(spec, next(drawn)))


def draws_of_the_moment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "manual_seed", lambda seed: None)


def gradients_of_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "none": lambda patch: None,
    "forgets its seed": forgets_its_seed,
    "draws of the moment": draws_of_the_moment,
    "gradients of nothing": gradients_of_nothing,
}


@pytest.mark.parametrize(
    ("planted", "recipe", "same", "learns"),
    [
        ("none", "fst:every=4", True, True),
        ("none", "dropout24", True, True),
        ("forgets its seed", "fst:every=4", False, True),
        ("draws of the moment", "dropout24", False, True),
        ("gradients of nothing", "fst:every=4", True, False),
    ],
)
def test_what_does_not_learn_or_is_not_the_same_again_is_found(
    cpu_ranks: Ranks, planted: str, recipe: str, same: bool, learns: bool
) -> None:
    found, *_ = cpu_ranks.run(_run_with, planted, case(recipe, 12))
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


def test_of_fewer_steps_than_usual_it_is_no_failure_to_have_learned_little() -> None:
    short = case("fst", 4)
    assert result([7.5, 7.4]).failure(short, usual=5) is None
    assert "must fall by 1.5" in (result([7.5, 7.4]).failure(short, usual=4) or "")
    for bits in math.nan, math.inf:
        told = result([5.0, bits]).failure(short, usual=5)
        assert told == f"seed 0: nothing was learned: the loss went from 8 to {bits:g} bits"


def test_what_is_saved_names_no_path() -> None:
    told = describe_curves(replace(case("fst"), corpus="/home/somebody/lm_corpus.txt"), result([5.0, 4.0]))
    assert "somebody" not in str(told)
    assert told["corpus"] == "lm_corpus.txt"
    assert describe_curves(case("fst"), result([5.0, 4.0]))["corpus"] is None
    assert "mean_flip_rate" not in describe_curves(case("dropout24"), result([5.0, 4.0])), "its weights have no masks"
    assert (told["step_ms"], told["last_bits"], told["mean_flip_rate"]) == ([250.0], 4.0, 0.1)
    assert result([5.0, 4.0]).step_seconds() == [0.25, 0.25]
    assert (told["timing"], "eager_step_ms" in told) == ("eager", False)
    beside_graphs = describe_curves(case("fst"), replace(result([5.0, 4.0]), eager=0.5))
    assert (beside_graphs["timing"], beside_graphs["eager_step_ms"]) == ("cuda_graph", 500.0)


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
    assert cpu_ranks.run(curves.obstacle, case("dropout24"))[0] is None
    other = cpu_ranks.run(curves.obstacle, case("activation:act=relu2"))[0]
    assert other == "its activation function is relu2, that of the model gelu: take --tasks text:act=relu2"
    odd = replace(case("fst"), N=66)
    assert "N must be a multiple of 4, got 66" in (cpu_ranks.run(curves.obstacle, odd)[0] or "")
