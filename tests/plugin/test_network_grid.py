"""Which rows are tried in which networks, and how a network's case is named and saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from resolving import CPU_DEFAULTS, GPU_DEFAULTS

from blockshock.methods import Role, method_of
from blockshock.phases import NetworkCase, network_case
from blockshock.plugin.cases import network_hypotheses, networks
from blockshock.plugin.records import describe_case, group_name
from blockshock.pruning import PRUNERS


def labels(settings: object) -> set[str]:
    return {case.label for case in networks(settings)}  # type: ignore[arg-type]


def test_on_a_cpu_what_is_usual_of_each_method_on_one_device() -> None:
    assert {"dense_single", "pruned auto magnitude"} <= labels(CPU_DEFAULTS)
    (case, *_) = networks(CPU_DEFAULTS)
    assert (case.workload, case.N, case.K, case.B, case.dtype) == ("minilm", 1536, 384, 8, "fp32")
    assert not any("_tp_" in label or "dtensor" in label or "masked_split" in label for label in labels(CPU_DEFAULTS))


def test_on_gpus_trained_weights_meet_each_pruner() -> None:
    grid = networks(replace(GPU_DEFAULTS, networks=("minilm", "vit_b")))
    of = {
        name: {case.pick("pruner") for case in grid if case.workload == name} - {None} for name in ("minilm", "vit_b")
    }
    assert of == {"minilm": set(PRUNERS.names()), "vit_b": {"magnitude"}}
    assert {case.B for case in grid if case.workload == "minilm"} == {16, 256}
    assert {case.dtype for case in grid} == {"bf16"}


def test_what_is_asked_for_is_what_there_is() -> None:
    axes = CPU_DEFAULTS.axes | {"pruner": ("random", "wanda"), "kernel": ("reference",)}
    methods = ("pruned", "dense_tp_row", "pruned_dense", "dtensor_row")
    asked = replace(
        CPU_DEFAULTS, methods=methods, axes=axes, batches=(2, 4), where=("mlp",), asked=("methods", "pruner", "kernel")
    )
    grid = networks(asked)
    assert {(case.label, case.B) for case in grid} == {
        (label, B)
        for B in (2, 4)
        for label in (
            *("pruned reference random", "pruned reference wanda", "dense_tp_row"),
            *("pruned_dense random", "pruned_dense wanda"),
        )
    }, "torch's DTensor is no layer of ours"
    assert all(case.id.endswith(f"-minilm-mlp-B{case.B}-fp32") for case in grid)


def test_on_a_cpu_one_row_is_set_beside_the_network_and_on_gpus_each() -> None:
    assert [claim.case.method for claim in network_hypotheses(CPU_DEFAULTS)] == ["pruned"]
    asked = replace(CPU_DEFAULTS, methods=("block_sparse", "pruned"), asked=("methods",))
    assert {claim.case.method for claim in network_hypotheses(asked)} == {"block_sparse", "pruned"}
    grid = replace(GPU_DEFAULTS, networks=("minilm",))
    found = {claim.case.label for claim in network_hypotheses(grid)}
    assert found == {case.label for case in networks(grid) if method_of(case.method)[0].role == Role.SUBJECT}
    assert len(found) > len(PRUNERS.names())


def test_ids_are_unique_and_a_case_says_where_it_is() -> None:
    grid = networks(replace(GPU_DEFAULTS, where=("blocks", "mlp")))
    assert len({case.id for case in grid}) == len(grid)
    case = network_case("pruned", {"kernel": "auto"}, "llama3-8b-decode:blocks=2", "mlp", 16, "bf16", 3)
    assert isinstance(case, NetworkCase)
    assert (case.N, case.K) == (14336, 4096)
    assert group_name("phase 4", case) == "phase 4 llama3-8b-decode:blocks=2 mlp B=16 bf16"
    told = describe_case(4, case, "cpu", 1)
    assert {name: told[name] for name in ("where", "workload", "B", "seed", "point")} == {
        "where": "mlp",
        "workload": "llama3-8b-decode:blocks=2",
        "B": 16,
        "seed": 3,
        "point": "llama3-8b-decode:blocks=2-mlp-B16-bf16",
    }


@pytest.mark.parametrize("network", ["llama3-8b", "vit_l"])
def test_a_large_network_is_laid_out_without_its_weights(network: str) -> None:
    case = network_case("dense_single", {}, network, "blocks", 1, "bf16", 0)
    assert {"llama3-8b": 14336 * 4096, "vit_l": 4096 * 1024}[network] == case.N * case.K
