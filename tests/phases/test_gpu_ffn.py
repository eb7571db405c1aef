"""Phase 6 on a GPU: blocks are right there in one pass and out of it, and all that is timed can be captured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpus import needs_a_gpu

from blockshock.phases import FFNCase, act_of, ffn, ffn_case, ffn_check, ffn_step
from blockshock.ranks import Ranks

pytestmark = [pytest.mark.gpu, needs_a_gpu]
BLOCKS = (
    *("activation", "activation:gradient=dense", "activation:masks=rows", "activation:where=post:act=gelu"),
    *("activation:masks=rows:dense=0.3", "activation:masks=rows:dense=0.5:where=post:act=relu"),
    *("activation:masks=rows:dense=1.0", "activation:masks=rows:gradient=dense"),
    *("activation:where=post:gradient=ste", "activation:act=gelu:gradient=ste"),
    *("activation:masks=rows:dense=1.0:gradient=dense:act=relu", "activation:masks=rows:gradient=ste:where=post"),
    *("activation:act=relu", "dropout24", "dropout24:act=relu2"),
)


def case(recipe: str | None, tokens: int = 512) -> FFNCase:
    return ffn_case(recipe, "relu2" if recipe is None else act_of(recipe), 256, 1024, tokens, "bf16")


@pytest.mark.parametrize("recipe", BLOCKS)
@pytest.mark.parametrize("tokens", [498, 512])
def test_a_block_is_what_its_recipe_says(gpu_rank: Ranks, recipe: str, tokens: int) -> None:
    assert gpu_rank.run(ffn_check.run, case(recipe, tokens))[0].failure() is None


@pytest.mark.parametrize("recipe", [None, *BLOCKS, "fst:every=3", "s_ste", "sr_ste", "pruned"])
def test_a_step_is_captured_and_timed_with_its_stages(gpu_rank: Ranks, recipe: str | None) -> None:
    assert gpu_rank.run(ffn.obstacle, case(recipe))[0] is None
    (found,) = gpu_rank.run(ffn_step.run, case(recipe), "cuda_graph", 6, 1, True)
    assert len(found.samples) == 6
    assert min(found.samples) > 0
    assert {"matmul", "grad_x"} <= found.stages.keys()
    assert found.eager_samples
    if recipe is not None:
        assert "cusparselt" in found.algorithm
        assert found.work["products"].flops["2:4"] > 0


def test_a_recipe_is_paired_with_the_dense_block_eager_and_compiled(gpu_rank: Ranks) -> None:
    compiled = replace(case(None), compiled=True)
    assert gpu_rank.run(ffn.obstacle, compiled)[0] is None
    assert gpu_rank.run(ffn_step.one_build, compiled, "cuda_graph", 20, 1, True)[0]
    for rival in (case(None), compiled):
        (found,) = gpu_rank.run(ffn_step.pair, case("fst:every=3"), rival, "cuda_graph", 10, 1, True)
        assert len(found.blocks.first) == len(found.blocks.second) >= 10
