"""Phase 6 on a rank: blocks are held to what their recipes say, faults that are planted are found, and times are of all
that a step takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from blockshock.phases import FFNCase, act_of, builds, ffn, ffn_case, ffn_check, ffn_step
from blockshock.phases.ffn_check import FFNCheck
from blockshock.phases.ffn_step import Step, mean_rounds
from blockshock.ranks import Ranks
from blockshock.training import RecipeStorage
from blockshock.training.recipes import blocks as blocks_module
from blockshock.training.recipes.activation import Activation
from blockshock.training.recipes.blocks import BlockRecipe
from blockshock.training.recipes.dropout24 import Dropout24
from blockshock.training.sparse import mask_24

Fault = Callable[[pytest.MonkeyPatch], None]
CPU = torch.device("cpu")


def case(recipe: str | None, tokens: int = 60) -> FFNCase:
    return ffn_case(recipe, "relu2" if recipe is None else act_of(recipe), 32, 256, tokens, "fp32")


def masks_of_rows(patch: pytest.MonkeyPatch) -> None:
    """That fit no tiles."""
    patch.setattr(Activation, "_kept", lambda self, x_BH: mask_24(x_BH, signed=True))


def masks_by_size(patch: pytest.MonkeyPatch) -> None:
    """Of z before relu, where what is negative is worth less than nothing."""
    patch.setattr(Activation, "_signed", property(lambda self: False))


def masks_of_the_smallest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Activation, "_kept", lambda self, x_BH: ~mask_24(x_BH, signed=True))


def three_of_four(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Dropout24, "_kept", lambda self, x_BH: (torch.arange(x_BH.shape[1]) % 4 < 3).expand_as(x_BH).contiguous()
    )


def not_doubled(patch: pytest.MonkeyPatch) -> None:
    plain = Dropout24.thinned
    patch.setattr(Dropout24, "thinned", lambda self, z_BH, training: plain(self, z_BH, training) / (1 + training))


def drops_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    plain = Dropout24.thinned
    patch.setattr(Dropout24, "thinned", lambda self, z_BH, training: plain(self, z_BH, True))


def straight_through(patch: pytest.MonkeyPatch) -> None:
    plain = blocks_module._Thin.apply
    patch.setattr(blocks_module, "_Thin", SimpleNamespace(apply=lambda x, kept, straight: plain(x, kept, True)))


def gradients_of_the_first_weight_halved(patch: pytest.MonkeyPatch) -> None:
    plain = blocks_module.over_tokens
    patch.setattr(blocks_module, "over_tokens", lambda *given: plain(*given) / 2)


def thins_the_wrong_features(patch: pytest.MonkeyPatch) -> None:
    """Those with fewest zeros."""
    plain = blocks_module.over_tokens

    def over_tokens(
        a_BH: torch.Tensor, x_BK: torch.Tensor, recipe: BlockRecipe, counts_H: torch.Tensor, many: int
    ) -> torch.Tensor:
        order = counts_H.argsort(descending=True)
        thin = F.pad(a_BH.T, (0, -len(a_BH) % 4))[order[:128]]
        kept_BH = a_BH.T.clone()
        kept_BH[order[:128]] = thin.where(mask_24(thin), 0)[:, : len(a_BH)]
        return kept_BH @ x_BK if not recipe.both_ways else plain(a_BH, x_BK, recipe, counts_H, many)

    patch.setattr(blocks_module, "over_tokens", over_tokens)


def coarse_products(patch: pytest.MonkeyPatch) -> None:
    plain = blocks_module.times_24
    patch.setattr(blocks_module, "times_24", lambda a, *more: plain(a.bfloat16().to(a.dtype), *more))


ROWS = "activation:masks=rows:dense=0.5"
FAULTS: list[tuple[str, Fault, str]] = [
    ("activation", masks_of_rows, "not 2:4"),
    ("activation", masks_by_size, "less than could be kept"),
    ("activation:masks=rows", masks_of_the_smallest, "less than could be kept"),
    ("dropout24", three_of_four, "not 2:4"),
    ("dropout24", not_doubled, "not all of what it keeps|the output"),
    ("dropout24", drops_in_evaluation, "the output in evaluation"),
    ("activation:where=post", straight_through, "∇"),
    ("activation", gradients_of_the_first_weight_halved, "∇W₁ is 0.5"),
    (ROWS, thins_the_wrong_features, "∇W"),
    ("activation", coarse_products, "the output"),
]


def _checked(recipe: str, fault: Fault | None) -> FFNCheck:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ffn_check, "STEPS", 12 if fault is None else 2)
        if fault is not None:
            fault(patch)
        return ffn_check.run(case(recipe))


def _all_checked(cases: list[tuple[str, Fault | None]]) -> list[FFNCheck]:
    return [_checked(*one) for one in cases]


def test_each_step_is_held_to_what_the_recipe_says(cpu_ranks: Ranks) -> None:
    found = cpu_ranks.run(_all_checked, [(recipe, fault) for recipe, fault, _ in FAULTS])[0]
    for (recipe, fault, says), one in zip(FAULTS, found, strict=True):
        why = one.failure() or ""
        assert any(part in why for part in says.split("|")), (recipe, fault.__name__, why)


def test_blocks_as_they_are_pass_and_learn(cpu_ranks: Ranks) -> None:
    right = ("activation:where=post:gradient=ste:act=gelu", "activation:gradient=dense", ROWS, "dropout24")
    for recipe, one in zip(right, cpu_ranks.run(_all_checked, [(recipe, None) for recipe in right])[0], strict=True):
        assert one.failure() is None, (recipe, one.failure())
        assert len(one.losses) == len(one.loss_distance) == len(one.weight_limit) == 12
    still = replace(one, losses=[1.0, 0.95])
    assert (still.failure() or "").startswith("nothing was learned")


def _times(recipe: str | None) -> tuple[Any, Any]:
    """The result, and what the pair comes to where each call of a block takes as long as its number says."""
    found = ffn_step.run(case(recipe), "sync", 4, 0, False)
    with pytest.MonkeyPatch.context() as patch:
        timed = lambda calls, *_: [[float(number)] for number, call in enumerate(calls, 1) if call() is None]  # noqa: E731
        patch.setattr(builds.timing, "time_calls", timed)
        return found, ffn_step.pair(case(recipe), case(None), "sync", 5, 0, False)


def test_times_are_of_the_mean_step_and_of_its_stages(cpu_ranks: Ranks) -> None:
    fst, both = cpu_ranks.run(_times, "fst:every=4")[0]
    assert [len(build) for build in fst.builds] == [2, 2]
    assert {"matmul", "grad_x", "grad_w", "estimate", "decay", "sparsify", "refresh"} <= fst.stages.keys()
    assert set(fst.alone) == {"forward", "forward_and_backward"}
    # Calls 1 and 3 are the recipe's, with a mask and without; 2 and 4 the dense block's.
    assert both.blocks.first[0] == [0.25 * 1 + 0.75 * 3]
    assert both.blocks.second[0] == [0.25 * 2 + 0.75 * 4]
    assert "a mask every 4 steps" in both.algorithm
    activation, alike = cpu_ranks.run(_times, "activation")[0]
    assert {"matmul", "grad_x", "grad_w", "sparsify"} <= activation.stages.keys()
    assert (alike.blocks.first[0], alike.blocks.second[0]) == ([1.0], [2.0])
    dense = cpu_ranks.run(ffn_step.run, case(None), "sync", 3, 0, False)[0]
    assert {"matmul", "grad_x", "grad_w"} <= dense.stages.keys()
    assert dense.weight_bytes == 2 * 32 * 256 * 4
    assert fst.weight_bytes > dense.weight_bytes
    assert dense.work["products"].flops == {"dense": 12 * 60 * 32 * 256}


def test_rounds_of_a_cycle_are_weighed() -> None:
    assert mean_rounds([0.25, 0.75], [[4.0, 8.0], [0.0, 4.0]]) == [1.0, 5.0]


def _upkeep(recipe: str) -> dict[str, int]:
    """How often each thing was done in a step that looks for masks and in one that does not."""
    counts: dict[str, int] = {}
    block = ffn.build(case(recipe))

    def counting(name: str) -> Callable[..., Any]:
        plain = getattr(RecipeStorage, name)
        return lambda self, *args, **more: counts.update({name: counts.get(name, 0) + 1}) or plain(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("before_step", "_take_mask", "pack"):
            patch.setattr(RecipeStorage, name, counting(name))
        for _, call in 2 * Step(block).parts():
            call()
    return counts | {"storages": len(block.storages), "sparse": sum(one.is_sparse for one in block.storages)}


def test_a_recipe_of_layers_keeps_both_2_4_in_each_step(cpu_ranks: Ranks) -> None:
    told = cpu_ranks.run(_upkeep, "fst:every=4:dense_from=2")[0]  # it would be dense soon
    assert told == {"before_step": 8, "_take_mask": 4, "pack": 8, "storages": 2, "sparse": 2}
    told = cpu_ranks.run(_upkeep, "step:latest=3")[0]
    assert told == {"before_step": 4, "_take_mask": 4, "pack": 4, "storages": 2, "sparse": 2}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (case("fst"), None),
        (case(None), None),
        (replace(case("activation"), workload="ffn:act=gelu"), "its activation function is relu2, that of the block g"),
        (replace(case("fst"), K=30), "K must be a multiple of 4, got 30"),
        (replace(case(None), B=1 << 40), "are free: lower --d or --B"),
    ],
)
def test_what_cannot_run_is_said_before_it_is_built(cpu_ranks: Ranks, found: FFNCase, says: str | None) -> None:
    reason = cpu_ranks.run(ffn.obstacle, found)[0]
    assert reason is None if says is None else says in (reason or "")


def test_a_compiled_block_is_called_by_its_weights_or_says_why_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = replace(case(None), compiled=True)
    monkeypatch.setattr(ffn, "this_device", lambda: CPU)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    ffn._compiled.cache_clear()
    eager, other = ffn.build(case(None)), ffn.build(compiled)
    assert torch.equal(eager.call(eager.x_BD), other.call(other.x_BD))
    assert ffn_step._algorithm(compiled, other) == "dense, compiled"
    ffn.not_compiled.cache_clear()
    assert ffn.not_compiled("gelu", torch.float32, CPU) is None
    ffn._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **_: 1 / 0)
    ffn.not_compiled.cache_clear()
    reason = ffn.obstacle(compiled)
    assert reason == "it does not compile: ZeroDivisionError: division by zero"
    ffn.not_compiled.cache_clear()


def test_all_rows_of_a_point_have_the_same_weights_and_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffn, "this_device", lambda: CPU)
    dense, *others = (ffn.build(case(recipe)) for recipe in (None, "activation", "ste"))
    for other in others:
        for one, beside in zip(dense.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(one, beside)
        assert torch.equal(dense.x_BD, other.x_BD)
        assert torch.equal(dense.grad_y_BD, other.grad_y_BD)


def _operations(recipe: str | None) -> dict[str, int]:
    """Of all products where sparse tensor cores multiply what they can, as a share of one dense product of a layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ffn_step, "_multiplies_24", lambda case: True)
        found = ffn_step._work(case(recipe), ffn.build(case(recipe)))["products"].flops
    return {unit: count / (2 * 60 * 32 * 256) for unit, count in found.items()}


def test_the_limit_is_that_of_products_of_which_some_are_2_4(cpu_ranks: Ranks) -> None:
    for recipe, flops in (
        (None, {"dense": 6.0}),
        ("activation", {"dense": 2.0, "2:4": 2.0}),
        ("activation:gradient=dense", {"dense": 4.0, "2:4": 1.0}),
        (ROWS, {"dense": 3.0, "2:4": 1.5}),
        ("fst", {"dense": 6.0}),  # by whose layers: on a CPU zeros are multiplied
    ):
        assert cpu_ranks.run(_operations, recipe)[0] == flops, recipe


def test_what_is_next_to_nothing_tells_nothing_of_a_mask() -> None:
    recipe = Activation(act="gelu", masks="rows")
    z_BH = torch.tensor([[-6.0, 1.0, 0.5, 0.2]])
    kept = lambda *which: F.gelu(z_BH) * torch.tensor([which])  # noqa: E731
    assert ffn_check._fault_of_mask(recipe, kept(1, 1, 0, 0), z_BH) is None
    assert ffn_check._fault_of_mask(recipe, kept(0, 1, 0, 0), z_BH) is None, "gelu of −6 may be zero"
    assert ffn_check._fault_of_mask(recipe, kept(0, 1, 1, 0), z_BH) == "it keeps less than could be kept"
    assert "not 2:4" in (ffn_check._fault_of_mask(recipe, kept(1, 1, 1, 1), z_BH) or "")
