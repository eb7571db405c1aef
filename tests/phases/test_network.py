"""Phase 4 on a rank: what it says of networks and rows, and what it cannot run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from refusing import refusals

from blockshock.models import minilm
from blockshock.phases import NetworkCase, network, network_case
from blockshock.phases.network import NetworkResult
from blockshock.ranks import Ranks

SMALL = "vit_b:blocks=2:width=64"
PRUNED = {"kernel": "reference", "pruner": "wanda"}
UNTIMED = ("none", 1, 0, False)


def case(method: str, picks: dict[str, str], spec: str = SMALL, where: str = "blocks") -> NetworkCase:
    return network_case(method, picks, spec, where, 2, "fp32", 0)


def one(ranks: Ranks, found: NetworkCase, *protocol: object) -> NetworkResult:
    return ranks.run(network.run, found, *(protocol or UNTIMED))[0]


@pytest.mark.parametrize(("where", "layers"), [("blocks", 12), ("mlp", 4)])
def test_rows_are_put_where_they_are_meant(cpu_ranks: Ranks, where: str, layers: int) -> None:
    dense, pruned = (one(cpu_ranks, case(*row, where=where)) for row in (("dense_single", {}), ("pruned", PRUNED)))
    assert (dense.replaced, pruned.replaced, pruned.left) == (0, layers, {})
    assert dense.flops == pruned.flops > 0
    assert 0.5 < pruned.weight_bytes / dense.weight_bytes < 0.6
    assert pruned.steady_bytes < dense.steady_bytes or where == "mlp"
    assert (dense.algorithm, pruned.algorithm) == ("dense", "reference")
    assert pruned.likeness == {}, "drawn weights have no quality"
    assert pruned.samples == []


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_the_dense_row_in_a_format_is_not_the_network_as_it_is(cpu_ranks: Ranks, format: str) -> None:
    dense, quantised = (one(cpu_ranks, case("dense_single", picks)) for picks in ({}, {"format": format}))
    assert (quantised.replaced, quantised.left) == (12, {})
    assert 0.25 < quantised.weight_bytes / dense.weight_bytes < 0.3


def test_flops_are_those_of_the_layers_that_are_meant(cpu_ranks: Ranks) -> None:
    found = one(cpu_ranks, case("dense_single", {}, where="mlp"))
    assert found.flops == 2 * 2 * 197 * 2 * 2 * 64 * 256, "two for each; images, tokens, blocks, layers"


def test_rows_over_several_ranks_do_too(cpu_ranks: Ranks) -> None:
    for found in cpu_ranks.run(network.run, case("dense_tp_row", {}), *UNTIMED):
        assert found.replaced == 12


def test_both_the_pass_and_its_layers_are_timed(cpu_ranks: Ranks) -> None:
    found = one(cpu_ranks, case("pruned", PRUNED), "sync", 3, 0, False)
    assert len(found.samples) == len(found.alone["linears"]) == 3
    assert found.eager_samples == []
    assert "compiled" not in found.alone


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (case("pruned", {"kernel": "cutlass", "pruner": "magnitude"}), "cutlass"),
        (case("pruned", {"kernel": "gathered", "pruner": "wanda"}), "needs a row-periodic mask"),
        (case("dense_single", {}, "llama3-8b"), "its blocks are made for a GPU"),
        (case("dense_single", {}), None),
    ],
)
def test_what_cannot_run_is_said_before_it_is_built(cpu_ranks: Ranks, found: NetworkCase, says: str | None) -> None:
    reason = cpu_ranks.run(network.obstacle, found)[0]
    assert reason is None if says is None else says in reason


def _without_its_package(found: NetworkCase) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
        return network.obstacle(found)


def test_a_network_whose_weights_are_not_there_says_how_to_get_them(cpu_ranks: Ranks) -> None:
    found = case("dense_single", {}, "minilm")
    assert minilm.INSTALL in (cpu_ranks.run(_without_its_package, found)[0] or "")


def test_a_row_that_takes_no_layer_is_no_time_of_it(cpu_ranks: Ranks) -> None:
    odd = replace(case("pruned", {"kernel": "gathered", "pruner": "wanda"}))
    for said in refusals(cpu_ranks, network.run, odd, *UNTIMED):
        assert said.startswith("InputError: ")
        assert "takes none of the layers of vit_b" in said
