"""Which recipes learn which tasks, by which schedule, and how a case of it is named and saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resolving import CPU_DEFAULTS, GPU_DEFAULTS

from blockshock.phases import CurveCase
from blockshock.phases.curves import scaled
from blockshock.plugin.learned import curves
from blockshock.plugin.records import describe_case, group_name

TEXT = replace(CPU_DEFAULTS, tasks=("text",))


def labels(settings: object) -> list[str]:
    return [case.label for case in curves(settings)]  # type: ignore[arg-type]


def test_dense_training_comes_first_and_is_always_there() -> None:
    assert labels(TEXT) == ["recipe dense", "recipe fst", "recipe s_ste", "recipe supermask"]
    asked = replace(TEXT, axes=TEXT.axes | {"recipe": ("ste:every=2",)}, steps=7)
    assert labels(asked) == ["recipe dense", "recipe ste:every=2"]
    assert labels(replace(TEXT, methods=("dense_single",))) == [], "of what was not asked for nothing is"


def test_on_a_gpu_each_recipe_has_three_seeds() -> None:
    grid = curves(replace(GPU_DEFAULTS, tasks=("text",)))
    names = ("dense", "ste", "sr_ste", "fst", "s_ste", "step", "pruned", "supermask")
    of_blocks = ("activation:where=post:masks=rows", "dropout24")
    assert {case.label for case in grid} == {f"recipe {name}" for name in (*names, *of_blocks)}
    assert {(case.seeds, case.dtype, case.steps) for case in grid} == {(3, "bf16", 300)}  # type: ignore[attr-defined]
    assert {(case.N, case.K, case.B) for case in grid} == {(2048, 512, 64 * 512)}


def test_a_case_says_where_it_is() -> None:
    case = curves(replace(TEXT, steps=12, seed=3))[1]
    assert isinstance(case, CurveCase)
    assert case.id == "recipe-fst-text-S12-fp32"
    assert group_name("phase 5", case) == "phase 5 text 12 steps fp32"
    told = describe_case(5, case, "cpu", 1)
    wanted = {"workload": "text", "steps": 12, "seed": 3, "point": "text-S12-fp32", "promise": "learns"}
    assert {name: told[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("spec", "steps", "schedule"),
    [
        ("fst", 300, "fst:every=30:dense_from=250"),
        ("fst", 300_000, "fst:every=40:dense_from=250000"),
        ("fst:every=20:dense_from=0", 300, "fst:every=20:dense_from=0"),
        ("step", 300, "step:latest=150"),
        ("step:latest=7", 300, "step:latest=7"),
        ("pruned", 300, "pruned:dense_until=150"),
        ("pruned:dense_until=0", 300, "pruned:dense_until=0"),
        ("sr_ste", 300, "sr_ste"),
        ("fst", 1, "fst:every=1:dense_from=1"),
    ],
)
def test_schedules_are_those_of_the_papers_for_so_many_steps(spec: str, steps: int, schedule: str) -> None:
    assert scaled(spec, steps) == schedule
