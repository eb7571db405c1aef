"""Which cases a run covers: their ids, the grid, and every pair of choices."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from inner_pytest import ROOT, python_path
from resolving import CPU_DEFAULTS, GPU_DEFAULTS

from blockshock.kernels import KERNELS
from blockshock.matrices.named_masks import MASKS
from blockshock.matrices.workloads import WORKLOADS, Workload
from blockshock.methods import METHODS
from blockshock.phases.case import DTYPES, Case
from blockshock.plugin import cases
from blockshock.plugin import cover as cover_module
from blockshock.plugin.points import Points
from blockshock.plugin.settings import Settings
from blockshock.training.optimizers import OPTIMIZERS
from blockshock.training.sparse_storages import STORAGES

SETTINGS = replace(
    CPU_DEFAULTS,
    points=Points(((64, 64), (64, 128)), (4, 16)),
    training_points=Points(((64, 64),), (4,)),
    dtypes=("bf16", "fp32"),
    methods=("dense_single", "block_shock", "masked_split_dense"),
    axes=CPU_DEFAULTS.axes | {"kernel": ("auto", "reference"), "mask": ("1100", "random")},
    workloads=("gaussian", "gaussian:std=0.5"),
    rounds=3,
    warmup=0,
)
CHOICES = ("row", "mask", "dtype", "workload", "size", "B")

every_device = pytest.mark.parametrize("device", ["cpu", "cuda"])


def ids(found: Iterable[Case]) -> list[str]:
    return [case.id for case in found]


def cover(settings: Settings) -> list[Case]:
    return cases.cover(settings, cases.forward_grid(settings))


@cache
def product(device: str) -> tuple[Case, ...]:
    return tuple(cover(replace(SETTINGS, device=device, cover="product")))


@cache
def choice_pairs(found: tuple[Case, ...]) -> set[frozenset[tuple[str, object]]]:
    """Every two choices that occur together in some case."""
    rows = [
        ((case.method, case.pick("kernel")), case.pick("mask"), case.dtype, case.workload, (case.N, case.K), case.B)
        for case in found
    ]
    named = [list(zip(CHOICES, row, strict=True)) for row in rows]
    return {frozenset((a, b)) for row in named for a in row for b in row if a != b}


def test_ids_read_as_documented() -> None:
    halves = Case("block_shock", {"kernel": "cusparselt", "mask": "1100"}, "gaussian", 8192, 8192, 64, "bf16")
    dense = Case("dense_single", {}, "gaussian:std=0.5", 64, 128, 1, "fp32")
    assert halves.id == "block_shock-cusparselt-1100-gaussian-N8192-K8192-B64-bf16"
    assert dense.id == "dense_single-gaussian:std=0.5-N64-K128-B1-fp32"
    assert (halves.label, dense.label) == ("block_shock cusparselt 1100", "dense_single")


def test_ids_are_those_of_the_layer_whatever_it_is_run_with() -> None:
    changed = replace(SETTINGS, ranks=4, timing="none", rounds=9, warmup=9, flush=False, seed=7, keep_full_weight=True)
    assert ids(cases.forward_grid(changed)) == ids(cases.forward_grid(SETTINGS))
    assert ids(cover(changed)) == ids(cover(SETTINGS))


@pytest.mark.parametrize("beside", ["grid", "pairs", "product"])
@every_device
def test_ids_are_unique(beside: str, device: str) -> None:
    # The grid holds cases of the cover, too: none is run twice.
    points = Points(cover_module.SHAPES[device], cover_module.TOKENS)
    small = replace(SETTINGS, device=device, cover=beside, points=points)
    found = ids(cases.forward_grid(small) + cover(small))
    assert len(found) == len(set(found))


def test_the_grid_is_every_choice_that_a_method_picks() -> None:
    masks, rows = ("1100", "random"), [("dense_single", {})]
    rows += [("block_shock", {"kernel": kernel, "mask": mask}) for kernel in ("auto", "reference") for mask in masks]
    rows += [("masked_split_dense", {"mask": mask}) for mask in masks]
    wanted = {
        Case(*row, workload, N, K, B, dtype)
        for row in rows
        for workload in ("gaussian", "gaussian:std=0.5")
        for N, K in ((64, 64), (64, 128))
        for B in (4, 16)
        for dtype in ("bf16", "fp32")
    }
    found = cases.forward_grid(SETTINGS)
    assert (set(found), len(found)) == (wanted, 7 * 2 * 2 * 2 * 2)


def test_dense_alternatives_are_timed_as_everybody_has_them_too() -> None:
    asked = SETTINGS.axes | {"kernel": ("auto",), "mask": ("1100",), "format": ("int8", "fp8"), "combine": ("auto",)}
    methods = ("dense_single", "dense_tp_row", "block_shock")
    settings = replace(SETTINGS, device="cuda", methods=methods, axes=asked, asked=("format",), dtypes=("bf16",))
    halves = ("block_shock auto 1100 auto int8", "block_shock auto 1100 auto fp8")
    dense = ("dense_single", "dense_single int8", "dense_single fp8")
    for grid in cases.forward_grid(settings), cases.backward_grid(settings):
        labels = list(dict.fromkeys(case.label for case in grid))
        assert labels == [*dense, "dense_tp_row", "dense_tp_row auto int8", "dense_tp_row auto fp8", *halves]
        assert len(set(ids(grid))) == len(grid)
    plain = replace(settings, axes=asked | {"format": ("int8", "plain"), "combine": None})
    found = [case.label for case in cases.forward_grid(plain) if case.method == "dense_single"]
    assert list(dict.fromkeys(found)) == ["dense_single int8", "dense_single"], "in the order that was asked for"
    assert {case.label for case in cases.networks(settings)} >= set(dense)


def test_the_grid_of_the_training_phases_differs_in_its_masks_alone() -> None:
    unasked = replace(SETTINGS, axes=SETTINGS.axes | {"mask": None})
    assert {case.label for case in cases.backward_grid(unasked)} == {
        "dense_single",
        "block_shock auto 1100",
        "block_shock reference tile",
        "masked_split_dense 1100",
    }
    assert {case.pick("mask") for case in cases.forward_grid(unasked)} == {None, "1100"}
    assert cases.backward_grid(SETTINGS) == cases.forward_grid(SETTINGS)


def test_halves_are_trained_in_each_storage_and_all_by_each_optimizer() -> None:
    found = cases.training_grid(replace(SETTINGS, dtypes=("bf16",)))
    of_halves = {(case.optimizer, case.pick("storage")) for case in found if case.method == "block_shock"}
    assert of_halves == set(itertools.product(("sgd", "adamw"), ("compressed", "masked")))
    assert {(case.optimizer, case.pick("storage")) for case in found if case.method != "block_shock"} == {
        ("sgd", None),
        ("adamw", None),
    }
    assert len({case.id for case in found}) == len(found)


@every_device
def test_trajectories_have_every_method_optimizer_and_storage(device: str) -> None:
    found = cases.trajectories(replace(SETTINGS, device=device))
    assert {case.optimizer for case in found} == set(OPTIMIZERS.names())
    assert {case.method for case in found} == set(SETTINGS.methods)
    assert {case.pick("storage") for case in found if case.method == "block_shock"} == set(STORAGES.names())
    assert {case.workload for case in found if case.method == "block_shock"} == {"gaussian", "recorded"}
    assert len({case.id for case in found}) == len(found)


def test_what_is_trained_or_fed_back_is_plain_whatever_formats_are_asked_for() -> None:
    asked = SETTINGS.axes | {"format": ("int8",)}
    settings = replace(SETTINGS, methods=("dense_single",), axes=asked, asked=("format",))
    for found in cases.trajectories(settings), cases.drifts(settings):
        assert {case.pick("format") for case in found} <= {None, "plain"}
    assert "int8" in {case.pick("format") for case in cases.forward_grid(settings)}


def test_cases_carry_the_seed_and_whether_all_of_w_is_kept() -> None:
    found = cases.forward_grid(replace(SETTINGS, seed=7, keep_full_weight=True))
    assert {(case.seed, case.keep_full_weight) for case in found} == {(7, True)}
    assert {case.seed for case in cover(replace(SETTINGS, seed=7))} == {7}


def test_the_recorded_workload_has_its_own_shapes_and_no_more_tokens_than_it_holds() -> None:
    points = replace(SETTINGS.points, tokens=(16, 512, 513))
    settings = replace(SETTINGS, workloads=("recorded", "gaussian"), points=points, dtypes=("bf16",))
    found = cases.forward_grid(settings)
    recorded = {(case.N, case.K, case.B) for case in found if case.workload == "recorded"}
    others = {(case.N, case.K, case.B) for case in found if case.workload == "gaussian"}
    assert recorded == {(N, K, B) for N, K in ((1536, 384), (384, 1536)) for B in (16, 512)}
    assert others == {(N, K, B) for N, K in settings.points.sizes for B in (16, 512, 513)}


@pytest.mark.parametrize("tries", [cover_module._COMPLETIONS, 1])
@every_device
def test_pairs_are_all_those_of_the_product_in_far_fewer_cases(
    device: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cover_module, "_COMPLETIONS", tries)
    pairs, all_of_them = tuple(cover(replace(SETTINGS, device=device, cover="pairs"))), product(device)
    assert choice_pairs(pairs) == choice_pairs(all_of_them)
    assert set(ids(pairs)) < set(ids(all_of_them))
    if tries > 1:
        assert len(pairs) * 50 < len(all_of_them)


@every_device
def test_the_cover_reaches_everything_that_has_a_name_and_runs_on_the_device(device: str) -> None:
    found = cover(replace(SETTINGS, device=device))
    fit = {name for name in KERNELS.names() if device in KERNELS.get(name).device_types}
    assert {case.method for case in found} == set(METHODS.names())
    assert {case.pick("kernel") for case in found} - {None} == {
        name for name in fit if KERNELS.get(name).sparse and KERNELS.get(name).plain
    }
    assert {case.pick("mask") for case in found} - {None} == set(MASKS.names())
    assert {case.workload for case in found} == set(WORKLOADS.names())
    assert {case.dtype for case in found} == set(DTYPES)


def test_the_cover_holds_only_cases_that_can_run() -> None:
    irregular = ("random", "magnitude", "tile_random", "tile_magnitude")
    for case in product("cuda"):
        assert (case.pick("mask") is not None) == ("mask" in METHODS.get(case.method).axes)
        assert (case.pick("kernel") is not None) == ("kernel" in METHODS.get(case.method).axes)
        assert case.workload != "recorded" or (case.N, case.K) in ((1536, 384), (384, 1536))
        assert case.pick("kernel") not in ("cutlass", "cusparselt") or case.dtype != "fp32"
        assert case.pick("kernel") != "gathered" or case.pick("mask") not in irregular


def test_the_cover_asks_no_workload_for_more_tokens_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Workload):
        most_tokens = 4

        def draw(self, B: int, K: int, stream: torch.Generator) -> torch.Tensor:
            raise NotImplementedError

    monkeypatch.setitem(WORKLOADS._entries, "short", Short)
    assert {case.B for case in cover(SETTINGS) if case.workload == "short"} == {1}


def test_the_cover_is_the_same_again_and_in_another_process() -> None:
    found = ids(cover(SETTINGS))
    assert ids(cover(SETTINGS)) == found
    code = "import test_cases as t; print(*t.ids(t.cover(t.SETTINGS)), sep='\\n')"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1",
        "PYTHONPATH": python_path(ROOT, ROOT / "tests", Path(__file__).parent),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == found


def test_a_kernel_has_a_pruner_of_its_own_and_another_both_ways() -> None:
    settings = replace(
        SETTINGS, methods=("pruned", "pruned_dense"), axes=SETTINGS.axes | {"kernel": ("auto", "gathered")}
    )
    forward, backward = ({case.label for case in grid(settings)} for grid in (cases.forward_grid, cases.backward_grid))
    assert forward == {"pruned auto magnitude", "pruned gathered 1100", "pruned_dense magnitude"}
    assert backward == {"pruned auto tile_magnitude", "pruned gathered 1100", "pruned_dense tile_magnitude"}
    asked = replace(settings, axes=settings.axes | {"pruner": ("random",)})
    assert {case.pick("pruner") for case in cases.forward_grid(asked) + cases.training_grid(asked)} == {"random"}


def test_cover_grid_adds_nothing() -> None:
    assert cover(replace(SETTINGS, cover="grid")) == []


FIRST_SEVEN = (
    *("dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col"),
    *("block_shock", "masked_split_dense"),
)
LATER_KERNELS = {"streamed"}
DIGESTS = {
    "cpu": {
        "forward_grid": "a8bc9099a8ff",
        "backward_grid": "a8bc9099a8ff",
        "training_grid": "e2308c3b0019",
        "trajectories": "f3fa7f362e75",
        "drifts": "a7974042263a",
        "cover": "ea02aed483d5",
    },
    "cuda": {
        "forward_grid": "73241bf63ae9",
        "backward_grid": "0fbaf0fbc5ef",
        "training_grid": "854e8261ee4f",
        "trajectories": "da31dae3fc45",
        "drifts": "8edbd3605473",
        "cover": "f488153574f2",
    },
}
"""Of the ids of the first seven methods. Runs that are saved compare and resume by them."""


@every_device
def test_ids_of_saved_runs_stay(device: str) -> None:
    settings = replace({"cpu": CPU_DEFAULTS, "cuda": GPU_DEFAULTS}[device], methods=FIRST_SEVEN)
    grids = [cases.forward_grid, cases.backward_grid, cases.training_grid, cases.trajectories, cases.drifts, cover]
    found = {}
    for grid in grids:
        # Of a way to combine that came later a row's name says something.
        first = (case for case in grid(settings) if case.method in FIRST_SEVEN and case.pick("combine") is None)
        ids = [case.id for case in first]
        # A kernel that came later adds ids to grids, and to pairs of choices makes others of them.
        named = "\n".join(one for one in ids if grid is cover or not set(one.split("-")) & LATER_KERNELS)
        found[grid.__name__] = hashlib.sha256(named.encode()).hexdigest()[:12]
    assert found == DIGESTS[device], (
        "saved runs would no longer compare: keep the ids, or say in DIGESTS that you do not"
    )
