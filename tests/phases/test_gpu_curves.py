"""Phase 5 on a GPU: recipes train in bf16 on the sparse tensor cores, beside float32 parameters, and learn."""

from __future__ import annotations

import pytest
import torch
from gpus import needs_a_gpu

from blockshock.models import build_task
from blockshock.phases import curve_case, curves
from blockshock.phases.pupil import Curve, Pupil
from blockshock.ranks import Ranks
from blockshock.training import any_recipe_of

pytestmark = [pytest.mark.gpu, needs_a_gpu]
RECIPES = (
    *("ste", "sr_ste", "fst", "s_ste", "step", "pruned", "supermask"),
    *("activation:where=post:masks=rows", "dropout24"),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_on_the_sparse_tensor_cores(gpu_rank: Ranks, recipe: str) -> None:
    case = curve_case(recipe, "digits", "cuda", "bf16", 0, 60, 1, None)
    assert gpu_rank.run(curves.obstacle, case)[0] is None
    (found,) = gpu_rank.run(curves.run, case)
    assert found.failure(case) is None
    assert ("cusparselt" if any_recipe_of(recipe).is_24 else "bsr") in found.algorithm
    assert found.replaced == 8


def _learned() -> tuple[set[torch.dtype], set[torch.dtype], Curve]:
    device, task = torch.device("cuda", torch.cuda.current_device()), build_task("text")
    task.load(device, None)
    found = Pupil(task, device, "fst:every=1:dense_from=3", 4, 0)
    multiplied = {storage.packed.values.dtype for storage in found.storages}
    return multiplied, {held.dtype for held in found.model.parameters()}, found.learn([2, 4])


def test_products_are_in_bf16_and_parameters_in_float32(gpu_rank: Ranks) -> None:
    ((multiplied, held, curve),) = gpu_rank.run(_learned)
    assert (multiplied, held) == ({torch.bfloat16}, {torch.float32})
    assert curve.bits[1] < curve.bits[0] < 8
    assert [flips > 0 for flips in curve.flip_rate] == [True, False]
