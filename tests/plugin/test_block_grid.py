"""Which recipes are measured in which feed-forward blocks, beside which dense ones, and how a case is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite
from resolving import CPU_DEFAULTS, GPU_DEFAULTS, Resolve, no_gpus, resolve

from blockshock.methods.picked_recipe import RecipeAxis
from blockshock.phases import FFNCase, ffn_case
from blockshock.plugin.blocks import block_hypotheses, blocks, checked
from blockshock.plugin.cases import training_grid
from blockshock.plugin.records import describe_case, group_name
from blockshock.plugin.settings import Settings
from blockshock.training import BLOCK_RECIPES, is_of_blocks

__all__ = ["no_gpus", "resolve"]
pytest_plugins = ["pytester"]
SMALL = replace(CPU_DEFAULTS, asked=("recipe", "B"), widths=((64, 256), (32, 96)))


def asking(recipes: tuple[str, ...], settings: Settings = SMALL) -> Settings:
    return replace(settings, axes=settings.axes | {"recipe": recipes})


def labels(settings: Settings) -> list[str]:
    return [f"{case.label} {case.workload}" for case in blocks(settings)]


def test_each_recipe_stands_behind_the_dense_block_of_its_activation_function() -> None:
    assert labels(CPU_DEFAULTS) == [
        "dense_single ffn:act=relu2",
        "recipe activation ffn:act=relu2",
        "recipe fst ffn:act=relu2",
        "dense_single ffn:act=gelu",
        "recipe dropout24 ffn:act=gelu",
    ]
    assert labels(replace(CPU_DEFAULTS, methods=("pruned",))) == [], "of what was not asked for nothing is"
    grid = blocks(asking(("activation:act=gelu",)))
    sizes = [(case.K, case.N, case.B) for case in grid if case.picks]
    assert sizes == [(64, 256, 4), (64, 256, 16), (32, 96, 4), (32, 96, 16)]
    assert {case.dtype for case in grid} == {"fp32"}


def test_on_a_gpu_the_rival_is_the_faster_of_eager_and_compiled() -> None:
    grid = blocks(GPU_DEFAULTS)
    assert {(case.K, case.N, case.B, case.dtype) for case in grid} == {
        (d, 4 * d, B, "bf16") for d in (1024, 4096, 8192) for B in (4096, 16384)
    }
    assert len({case.id for case in grid}) == len(grid)
    asked_about = [claim.case for claim in block_hypotheses(GPU_DEFAULTS)]
    assert asked_about == [case for case in grid if case.method == "recipe"]
    for claim in block_hypotheses(GPU_DEFAULTS):
        assert [rival.label for rival in claim.rivals] == ["dense_single", "dense_single compiled"]
        assert {rival.point for rival in claim.rivals} == {claim.case.point}
        assert claim.name == "H10"
    dense = block_hypotheses(asking(("dense",)))
    assert dense == [], "through the same code, it is the control"


def test_what_is_held_to_its_definition_is_what_makes_activations_2_4() -> None:
    (found,) = checked(asking(("fst", "activation:where=post")))
    assert found.id == "recipe-activation:where=post-ffn:act=relu2-N256-K32-B60-fp32"
    assert {case.dtype for case in checked(GPU_DEFAULTS)} == {"bf16"}
    assert all(is_of_blocks(case.picks["recipe"]) for case in checked(GPU_DEFAULTS))


def test_a_case_says_where_it_is() -> None:
    case = ffn_case("activation", "relu2", 4096, 16384, 512, "bf16", 3)
    assert case.id == "recipe-activation-ffn:act=relu2-N16384-K4096-B512-bf16"
    assert group_name("phase 6", case) == "phase 6 ffn:act=relu2 d=4096 hidden=16384 tokens=512 bf16"
    told = describe_case(6, case, "cuda", 1)
    wanted = {"workload": "ffn:act=relu2", "seed": 3, "role": "subject", "promise": "learns", "span": "one", "K": 4096}
    assert {name: told[name] for name in wanted} == wanted
    compiled = replace(ffn_case(None, "gelu", 64, 256, 8, "fp32"), compiled=True)
    assert isinstance(compiled, FFNCase)
    assert (compiled.id, compiled.label) == (
        "dense_single-compiled-ffn:act=gelu-N256-K64-B8-fp32",
        "dense_single compiled",
    )
    told = describe_case(6, compiled, "cpu", 1)
    assert (told["role"], told["promise"], told["label"]) == ("rival", "dense", "dense_single compiled")


def test_widths_are_what_was_asked_for(resolve: Resolve) -> None:
    assert resolve().widths == ()
    assert resolve("--d", "64, 4096x14336,64").widths == ((64, 256), (4096, 14336))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("", "--d is empty"),
        ("4k", "--d takes whole numbers, got '4k'"),
        ("64x", "--d takes whole numbers, got ''"),
        ("64x30", "--d 64x30: hidden features are cut into groups of four"),
        ("0", "--d"),
    ],
)
def test_a_width_that_is_none_is_refused(resolve: Resolve, asked: str, says: str) -> None:
    with pytest.raises(pytest.UsageError, match=says):
        resolve("--d", asked)


def test_recipes_of_blocks_can_be_asked_for_and_are_no_layers(resolve: Resolve) -> None:
    assert resolve("--recipes", "activation:act=gelu,fst").axes["recipe"] == ("activation:act=gelu", "fst")
    with pytest.raises(pytest.UsageError, match=r"--recipes: act is one of gelu, relu, relu2, got act=tanh"):
        resolve("--recipes", "activation:act=tanh")
    (case, *_) = [case for case in training_grid(asking(("activation",))) if case.method == "recipe"]
    reason = RecipeAxis("recipe").unsuitable(case.picks["recipe"], case.layer("cpu"))  # type: ignore[arg-type]
    assert reason is not None
    assert "a layer alone has none: SparseFFN" in reason
    assert all(name in RecipeAxis.about for name in BLOCK_RECIPES.names())


CEILINGS = """
import blockshock.plugin as plugin
from blockshock.measure import Ceilings
from blockshock.plugin.stash import CEILINGS

asked = []

class Ranks:
    size = 1

class Measuring:
    def __init__(self, *given):
        self.missing = {}
    def ceilings(self, dtypes, formats):
        asked.append(dtypes)
        return Ceilings(1e9, 0, dict.fromkeys(dtypes, 1e9), {}, None, None, 1e-6)

def test_ceilings(ceilings, pytestconfig, monkeypatch):
    monkeypatch.setattr(plugin, "Measuring", Measuring)
    ranks = Ranks()
    assert ceilings(ranks, "bf16").dense_flops_per_s.keys() == {"bf16"}
    for _ in range(2):
        assert ceilings(ranks, "fp32").dense_flops_per_s.keys() == {"bf16", "fp32"}
    assert asked == [("bf16",), ("bf16", "fp32")]
    assert "fp32" in pytestconfig.stash[CEILINGS].dense_flops_per_s
"""


def test_a_block_in_another_dtype_than_the_sessions_has_a_ceiling_too(pytester: pytest.Pytester) -> None:
    light_suite(pytester.path)
    (pytester.path / "test_light.py").write_text(CEILINGS)
    assert pytester.runpytest_inprocess(*LIGHT_OPTIONS).ret == pytest.ExitCode.OK
