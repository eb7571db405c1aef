"""Phase 4 on a rank: what it says of networks and rows, and what it cannot run."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpus import needs_a_gpu
from refusing import refusals
from torch import nn

from blockshock.models import build_network, compress, minilm
from blockshock.nn.frozen_linear import FrozenLinear
from blockshock.phases import NetworkCase, builds, network, network_case, network_pairs
from blockshock.phases.network import NetworkResult
from blockshock.ranks import Ranks

SMALL = "vit_b:blocks=2:width=64"
HEAVY = "vit_b:blocks=2:width=256"
"""Whose weights are more than what the resident memory of a process grows by from one pass to the next."""
PRUNED = {"kernel": "reference", "pruner": "wanda"}
UNTIMED = ("none", 1, 0, False)


def case(method: str, picks: dict[str, str], spec: str = SMALL, where: str = "blocks") -> NetworkCase:
    return network_case(method, picks, spec, where, 2, "fp32", 0)


def one(ranks: Ranks, found: NetworkCase, *protocol: object) -> NetworkResult:
    return ranks.run(network.run, found, *(protocol or UNTIMED))[0]


@pytest.mark.parametrize(("where", "layers"), [("blocks", 12), ("mlp", 4)])
def test_rows_are_put_where_they_are_meant(cpu_ranks: Ranks, where: str, layers: int) -> None:
    rows = ("dense_single", {}), ("pruned", PRUNED)
    dense, pruned = (one(cpu_ranks, case(*row, HEAVY, where)) for row in rows)
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


def _paired(first: NetworkCase, second: NetworkCase) -> tuple[network_pairs.NetworkPair, list[tuple[str, int]], Any]:
    """What a pair comes to; of each copy that was made what it is of, and where its first layer lies; and what the
    calls of the first block gave."""
    made: list[tuple[str, int]] = []
    given: list[Any] = []
    kept = []

    def copied(model: nn.Module) -> nn.Module:
        twin = copy.deepcopy(model)
        linear = next(module for name, module in twin.named_modules() if name.startswith("blocks.") and _weight(module))
        made.append((type(linear).__name__, _weight(linear)))
        kept.append(twin)
        return twin

    def timed(calls: list[Any], *_: object) -> list[list[float]]:
        given.extend([] if given else [call() for call in calls])
        return [[float(number)] for number in range(1, 5)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_pairs, "copy", SimpleNamespace(deepcopy=copied))
        patch.setattr(builds.timing, "time_calls", timed)
        return network_pairs.run(first, second, "sync", 5, 0, False), made, given


def _weight(module: nn.Module) -> int:
    """Where its values are, of a linear layer of either kind; else 0."""
    if isinstance(module, FrozenLinear):
        return max(module.layer.tensors(), key=torch.numel).data_ptr()
    return module.weight.data_ptr() if isinstance(module, nn.Linear) else 0


def test_in_each_block_of_a_pair_both_networks_are_copies_of_their_own(cpu_ranks: Ranks) -> None:
    found, made, given = cpu_ranks.run(_paired, case("pruned", PRUNED), case("dense_single", {}))[0]
    count = builds.BLOCKS["cpu"]
    assert {name: (pair.first, pair.second, pair.pilot) for name, pair in found.blocks.items()} == {
        "network": ([[1.0]] * count, [[2.0]] * count, count),
        "linears": ([[3.0]] * count, [[4.0]] * count, count),
    }
    assert Counter(name for name, _ in made) == {"FrozenLinear": count, "Linear": count}
    assert len({place for _, place in made}) == 2 * count
    ours, theirs, our_layers, their_layers = given
    assert ours.shape == theirs.shape
    assert not torch.equal(ours, theirs)
    assert len(our_layers) == len(their_layers) == 12
    assert not torch.equal(our_layers[0], their_layers[0])
    assert (found.likeness, found.algorithm) == ({}, "reference")


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize(
    "row",
    [
        *("pruned-cusparselt:search=no-magnitude", "pruned-streamed-magnitude", "pruned-auto-magnitude"),
        *("pruned-cusparselt:search=no-magnitude-int8", "dense_single-int8", "dense_single-fp8"),
        "block_sparse-bsr-blocks:size=32",
    ],
)
@torch.inference_mode()
def test_on_a_gpu_a_copy_of_a_network_gives_its_bits(row: str) -> None:
    network, device = build_network("vit_b:blocks=1:width=256"), torch.device("cuda")
    model, call = network.build(torch.bfloat16, device, 0), network.call(2, torch.bfloat16, device, 0)
    meant = lambda name, _: network.is_meant(name, "blocks")  # noqa: E731
    assert compress(model, row, where=meant, frozen=True).replaced
    outputs = [one(*call) for one in (model, copy.deepcopy(model), model)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[0], outputs[1])


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
