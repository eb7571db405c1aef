"""What auto remembers of a layer, and takes of it: by all that decides how fast it is, and what can be asked there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_peers import faked
from torch.nn import functional as F

from blockshock.errors import InputError
from blockshock.machine.combines import symmetric
from blockshock.machine.combines.auto import Auto
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer, Method, combined
from blockshock.ranks import Ranks
from blockshock.training import DenseStorage, Training

Seconds = Callable[[list[Any]], list[list[float]]]
"""Of calls that are measured together, what each takes in each round."""


NOTHING = SimpleNamespace(known=lambda _: None, keep=lambda *_: None)
"""Is remembered."""


def in_turn(calls: list[Any]) -> list[list[float]]:
    """Each takes a second more than the one before."""
    return [[1.0 + place] for place, _ in enumerate(calls)]


def lost(*_: object) -> None:
    raise InputError("out of reach")


@contextmanager
def remembering(known: Any, calls: list[Any], seconds: Seconds = in_turn) -> Iterator[pytest.MonkeyPatch]:
    """Fake peers, what is remembered as it is given, and all calls that are measured, once each, taking so long."""

    def planted(found: list[Any], *_: Any) -> list[list[float]]:
        calls.append(len(found))
        for call in found:
            call()
        return seconds(found)

    with faked(most_bytes=1 << 24), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Auto, "device_types", ("cpu", "cuda"))
        patch.setattr(combined.timing, "time_calls", planted)
        patch.setattr(combined, "_measured", known)
        yield patch


def built(method: str, N: int, K: int, tokens: int, picks: dict[str, str], training: bool = False) -> Method:
    source = GeneratedWeights(N, K, torch.float32, "cpu")
    layer = Layer(source, {**picks, "combine": "auto"}, tokens, training=Training() if training else None)
    return METHODS.get(method)(layer, dist.group.WORLD)


def _measured_by_mask(masks: list[str]) -> list[int]:
    kept: dict[str, Any] = {}
    calls: list[int] = []
    found = []
    with remembering(SimpleNamespace(known=kept.get, keep=kept.__setitem__), calls):
        for mask in masks:
            before = len(calls)
            built("block_shock", 64, 96, 8, {"kernel": "gathered", "mask": mask})
            found.append(len(calls) - before)
    return found


def test_each_mask_is_measured_for_itself_and_once(cpu_ranks: Ranks) -> None:
    masks = ["1100", "tile", "1100", "1010", "tile"]
    assert cpu_ranks.run(_measured_by_mask, masks)[0] == [1, 1, 0, 1, 0]


def _elsewhere() -> tuple[str, bool]:
    """What is taken where the ways that were fastest when they were measured cannot be asked, and if that is right."""

    def known(key: str) -> list[float]:
        count = len(key.partition(" of ")[2].split())
        return [9.0, *(1.0 + place for place in range(count - 1))]

    with remembering(SimpleNamespace(known=known, keep=lambda *_: None), []) as patch:
        patch.setattr(symmetric, "workspace_for", lost)
        layer = built("dense_tp_row", 64, 96, 8, {})
    x_BK = torch.ones(8, 96)
    w_NK = GeneratedWeights(64, 96, torch.float32, "cpu").rows(0, 64)
    return layer._combine, torch.allclose(layer(x_BK), F.linear(x_BK, w_NK), atol=1e-5)


def test_what_was_the_fastest_elsewhere_is_not_taken_where_it_cannot_be(cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_elsewhere) == [("nccl", True)] * 2


def _weights_differentiated(training: bool) -> int:
    counted: list[int] = []
    grad_weight = DenseStorage.grad_weight
    with remembering(NOTHING, []) as patch:
        patch.setattr(DenseStorage, "grad_weight", lambda *given: counted.append(1) or grad_weight(*given))
        built("dense_tp_col", 64, 96, 8, {}, training)
    return len(counted)


def test_of_what_is_trained_the_gradient_of_weights_is_measured_too(cpu_ranks: Ranks) -> None:
    """Ranks agree on grad_X beside it: that is what a way that overlaps is fast by."""
    assert all(cpu_ranks.run(_weights_differentiated, True))
    assert not any(cpu_ranks.run(_weights_differentiated, False))


def _wide(tokens: int) -> list[str]:
    """As wide as the head of a language model, of a token or few."""
    N, K, wrong = 128256, 8, []
    source = GeneratedWeights(N, K, torch.float32, "cpu")
    x_BK = torch.ones(tokens, K)
    right = F.linear(x_BK, source.rows(0, N))
    with remembering(NOTHING, []):
        for combine in ("one_shot", "two_shot", "peer_add", "auto"):
            layer = METHODS.get("dense_tp_row")(Layer(source, {"combine": combine}, tokens), dist.group.WORLD)
            wrong += [] if torch.allclose(layer(x_BK), right, atol=1e-5) else [combine]
    return wrong


@pytest.mark.parametrize("tokens", [1, 5])
def test_few_tokens_of_a_wide_layer_go_by_each_way(tokens: int, cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_wide, tokens) == [[], []]


def _chosen(unreachable: bool) -> tuple[list[str], int]:
    """What auto takes of one layer, three times, and how often it measured; what cannot be set up is left out."""
    calls: list[int] = []
    measure = combined.Combined._measure

    def counted(self: combined.Combined, *args: Any) -> list[float]:
        calls.append(1)
        return measure(self, *args)

    with faked(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(combined.Combined, "_measure", counted)
        patch.setattr(Auto, "device_types", ("cpu", "cuda"))
        if unreachable:
            patch.setattr(symmetric, "workspace_for", lost)
        source = GeneratedWeights(64, 96, torch.float32, "cpu", seed=int(unreachable))
        layer = Layer(source, {"combine": "auto"}, 32 + int(unreachable), backward=True)
        layers = [METHODS.get("dense_tp_row")(layer, dist.group.WORLD) for _ in range(3)]
        x_BK = torch.ones(32, 96)
        assert torch.allclose(layers[0](x_BK), F.linear(x_BK, source.rows(0, 64)), atol=1e-5)
    return [one._combine for one in layers], len(calls)


def test_auto_measures_once_and_all_ranks_take_the_same(cpu_ranks: Ranks) -> None:
    one, other = cpu_ranks.run(_chosen, False)
    assert one == other
    assert len(set(one[0])) == 1
    assert one[1] <= 1, "what was found is remembered"


def _chosen_of(slow: dict[str, list[list[float]]]) -> tuple[str, list[int]]:
    """What auto takes where ways take so many seconds on each rank, by round; and of how many calls a round is."""
    together: list[int] = []

    def seconds(calls: list[Any]) -> list[list[float]]:
        return [slow[spec][dist.get_rank()] for spec in slow]

    with remembering(NOTHING, together, seconds) as patch:
        patch.setattr(combined.combines, "candidates", lambda *_: list(slow))
        return built("dense_tp_row", 64, 96, 128, {})._combine, together


def test_auto_asks_what_the_slower_rank_takes_in_each_round(cpu_ranks: Ranks) -> None:
    """Each rank is fast in three rounds of five, both in one: by its own median it would be far ahead."""
    in_turns = [[1.0, 1.0, 1.0, 9.0, 9.0], [9.0, 9.0, 1.0, 1.0, 1.0]]
    steady = [[3.0] * 5] * 2
    for spec, together in cpu_ranks.run(_chosen_of, {"nccl": steady, "overlap": in_turns}):
        assert (spec, together) == ("nccl", [2]), "and a round goes through all ways"
    for spec, _ in cpu_ranks.run(_chosen_of, {"nccl": steady, "two_shot": [[2.0] * 5] * 2}):
        assert spec == "two_shot"


def test_auto_does_without_what_these_machines_cannot_do(cpu_ranks: Ranks) -> None:
    for specs, _ in cpu_ranks.run(_chosen, True):
        assert specs == ["nccl"] * 3
