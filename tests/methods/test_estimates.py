"""Memory by arithmetic is held to what is counted: of every method, kernel, mask, storage, optimizer and dtype."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from fake_cusparselt import faked
from gpus import CPU_METHODS, needs_a_gpu

from blockshock.kernels import auto
from blockshock.machine import memory
from blockshock.machine.collectives import Alone
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer, Shape
from blockshock.phases.case import Case, build, update_bytes
from blockshock.phases.train import Step
from blockshock.ranks import Ranks
from blockshock.training.optimizers import OPTIMIZERS
from blockshock.training.parameters import Training
from blockshock.training.recipes import RECIPES
from blockshock.training.sparse_storages import STORAGES

CASE = Case("block_shock", {}, "gaussian", 128, 256, 8, "bf16")
KERNELS = ("auto:search=no", "gathered", "reference", "cusparselt:search=no")
MASKS = ("1100", "tile", "random", "tile_random")
PRUNERS = ("1100", "magnitude", "tile_magnitude")


def _rows(kernels: tuple[str, ...] = KERNELS) -> list[Case]:
    """Every method with all that it picks, of these kernels."""
    halves = [
        CASE.picking(kernel=kernel, mask=mask)
        for kernel, mask in itertools.product(kernels, MASKS)
        if kernel != "gathered" or mask in ("1100", "tile")
    ]
    others = [
        CASE.picking(mask="random", kernel=kernel, pruner=pruner).of(name, METHODS.get(name).axes)
        for name, kernel, pruner in itertools.product(CPU_METHODS, kernels, PRUNERS)
        if name not in ("block_shock", "recipe") and (kernel != "gathered" or pruner == "1100")
    ]
    recipes = [CASE.picking(recipe=spec).of("recipe", ("recipe",)) for spec in (*RECIPES.names(), "s_ste:bits=8")]
    return halves + recipes + [case for number, case in enumerate(others) if case not in others[:number]]


def _trained(case: Case, optimizers: tuple[str, ...]) -> list[Case]:
    storages = STORAGES.names() if "storage" in METHODS.get(case.method).axes else [None]
    return [
        replace(case, optimizer=optimizer, dtype=dtype).picking(storage=storage)
        for storage, optimizer, dtype in itertools.product(storages, optimizers, ("bf16", "fp32"))
        if "cusparselt" not in case.label or dtype == "bf16"
        if optimizer == "adamw"
        or ({case.pick("mask"), case.pick("pruner")} <= {"tile", "1100", None} and dtype == "bf16")
    ]


def _held(cases: list[tuple[Case, bool]]) -> list[tuple[int, int, int, int]]:
    """Of each case the bytes of its weights, counted and estimated, and of gradients and states after a step."""
    found = []
    with faked(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "_median_seconds", lambda *_: 1.0)
        for case, backward in cases:
            built = build(case, backward)
            counted, updates = built.method.weight_bytes(), 0
            if case.optimizer is not None:
                step = Step(case, built)
                step()
                states = [value for state in step.optimizer.state.values() for value in state.values()]
                tensors = [value for value in states if isinstance(value, torch.Tensor) and value.ndim]
                grads = [parameter.grad for parameter in step.parameters if parameter.grad is not None]
                updates = memory.held_bytes([*grads, *tensors])
            assert built.method.weight_bytes() == counted, f"{case.id} grew"
            found.append((counted, built.estimate.steady, updates, update_bytes(case, built.estimate)))
    return found


def _check(ranks: Ranks, rows: list[Case], optimizers: tuple[str, ...]) -> None:
    cases = [(case, backward) for case in rows for backward in (False, True)]
    cases += [(trained, True) for case in rows for trained in _trained(case, optimizers)]
    cases.append((replace(CASE, keep_full_weight=True).picking(kernel="reference", mask="random"), False))
    for (case, backward), found in zip(cases, ranks.run(_held, cases)[0], strict=True):
        weights, estimated, updates, estimated_updates = found
        assert weights == pytest.approx(estimated, rel=0.005), f"{case.id} {backward}: weights"
        assert updates == estimated_updates, f"{case.id}: gradients and states"


def test_what_is_held_is_what_was_estimated_on_two_ranks(cpu_ranks: Ranks) -> None:
    _check(cpu_ranks, _rows(), OPTIMIZERS.names())


def test_what_is_held_is_what_was_estimated_on_one_rank_and_on_four(other_ranks: Ranks) -> None:
    _check(other_ranks, _rows(("auto:search=no",)), ("adamw",))


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("storage", [None, "compressed", "masked"])
@pytest.mark.parametrize(("kernel", "pruner"), [("cusparselt:search=no", "tile_magnitude"), ("gathered", "1100")])
def test_a_gpu_gives_out_what_a_pruned_layer_was_estimated(kernel: str, pruner: str, storage: str | None) -> None:
    _check_on_a_gpu("pruned", {"kernel": kernel, "pruner": pruner}, storage)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("storage", [None, "compressed", "masked"])
@pytest.mark.parametrize(
    ("kernel", "mask"),
    [
        *(("cusparselt:search=no", mask) for mask in ("tile", "tile_random", "random")),
        ("gathered", "1100"),
        ("reference", "random"),
    ],
)
def test_a_gpu_gives_out_what_was_estimated(kernel: str, mask: str, storage: str | None) -> None:
    _check_on_a_gpu("block_shock", {"kernel": kernel, "mask": mask}, storage)


def _check_on_a_gpu(name: str, picks: dict[str, str], storage: str | None) -> None:
    device, size = torch.device("cuda"), 8192
    training = None if storage is None else Training()
    small, source = (GeneratedWeights(N, N, torch.bfloat16, device) for N in (512, size))
    first, layer = (Layer(of, picks | {"storage": storage or "masked"}, 64, True, training) for of in (small, source))
    METHODS.get(name)(first, Alone())  # what is made once and kept, as cuBLAS's workspace, is not the layer's
    assert layer.kept is not None
    layer.kept.rows(0, 4)  # nor are tables of tiles
    memory.release()
    before = torch.cuda.memory_allocated()
    with memory.peak_bytes(device) as peak:
        method = METHODS.get(name)(layer, Alone())
    layer = Layer(source, layer.picks, 64, True, training)  # the first one holds what was pruned, as long as it is held
    held = torch.cuda.memory_allocated() - before
    shape = Shape(size, size, 2, 1, True, training, mask=layer.kept, picks={**layer.picks, **method.resolved})
    estimate = METHODS.get(name).estimate(shape)
    assert method.weight_bytes() == pytest.approx(estimate.steady, rel=0.005)
    assert held == pytest.approx(estimate.steady, rel=0.02), "something is held that is not counted"
    # Blocks of rows are 64 MiB of weights; their positions, as int64, are several times that.
    assert peak[0] <= estimate.building + (768 << 20), "and a few blocks of rows"
