"""Where kernel and combine are both auto, the fastest pair is taken; a kernel that sums by itself is faked on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_pairs import (
    B,
    Found,
    PackedSumming,
    Pair,
    Planted,
    Summing,
    Twisted,
    build_and_ask,
    build_planted,
    pairs_planted,
)

from blockshock.errors import InputError
from blockshock.kernels import AlgorithmCache, auto
from blockshock.machine.combines import symmetric
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import Layer, axis_of, combined
from blockshock.ranks import Ranks
from blockshock.training import Training

BOTH = {"kernel": "auto", "combine": "auto"}
PICKS = {"block_shock": {"mask": "1100"} | BOTH, "pruned_tp_row": {"pruner": "1100"} | BOTH}
HALVES = ("block_shock", PICKS["block_shock"])
PLAIN = ("gathered", "one_shot")
FIRST = {PLAIN: [44.8, 44.8]}
FUSED = ("summing", "fused")


def _check(per_rank: list[Found], pair: Pair) -> list[Pair]:
    """All ranks took that pair, and y is right; what they measured, which is the same on all."""
    for found in per_rank:
        assert found.pair == pair
        assert found.error < 1e-2
        assert found.said == f"{pair[0]}, combined by {pair[1]}"
        assert found.packed[1] == 1, "the weights of one kernel are held at a time"
        assert found.measured == per_rank[0].measured
    return per_rank[0].measured


EACH = pytest.mark.parametrize("method", PICKS)


@EACH
def test_a_kernel_that_sums_by_itself_wins_by_the_pair(method: str, cpu_ranks: Ranks, tmp_path: Path) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [35.5, 35.5]})
    measured = _check(cpu_ranks.run(build_planted, planted, method, PICKS[method]), FUSED)
    assert {kernel for kernel, _ in measured} == {"gathered", "summing"}


@EACH
def test_the_kernel_of_the_fastest_product_stays_where_its_pair_is_no_slower(
    method: str, cpu_ranks: Ranks, tmp_path: Path
) -> None:
    for seconds in (44.8, 50.0):
        planted = Planted(tmp_path / str(seconds), FIRST | {FUSED: [seconds] * 2})
        measured = _check(cpu_ranks.run(build_planted, planted, method, PICKS[method]), PLAIN)
        assert FUSED in measured


def test_another_way_of_the_kernel_that_sums_may_be_the_fastest(cpu_ranks: Ranks, tmp_path: Path) -> None:
    pair = ("summing", "two_shot")
    planted = Planted(tmp_path, FIRST | {FUSED: [41.0] * 2, pair: [40.0] * 2})
    _check(cpu_ranks.run(build_planted, planted, *HALVES), pair)


@pytest.mark.parametrize("fast", [0, 1])
def test_ranks_decide_by_the_slower_one(fast: int, cpu_ranks: Ranks, tmp_path: Path) -> None:
    """One has it that the pair is far ahead, the other that it is behind."""
    seconds = [50.0, 50.0]
    seconds[fast] = 10.0
    planted = Planted(tmp_path, FIRST | {FUSED: seconds})
    _check(cpu_ranks.run(build_planted, planted, *HALVES), PLAIN)


def _again(planted: Planted, layers: list[tuple[str, dict[str, str], int]]) -> list[Found]:
    """One layer after the other, each as a process would that has measured nothing."""
    found = []
    with pairs_planted(planted) as (patch, measured, packings):
        for method, picks, tokens in layers:
            patch.setattr(auto, "_measured", AlgorithmCache("auto", auto.are_seconds))
            patch.setattr(combined, "_measured", AlgorithmCache("combine", combined.are_seconds))
            found.append(build_and_ask(method, picks, measured, packings, tokens=tokens))
    return found


@EACH
@pytest.mark.parametrize("fused", [30.0, 50.0])
def test_what_was_measured_is_remembered_and_nothing_is_held_twice(
    method: str, fused: float, cpu_ranks: Ranks, tmp_path: Path
) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [fused] * 2})
    layers = [(method, PICKS[method], tokens) for tokens in (B, B, B, B - 1)]
    for first, *others, last in cpu_ranks.run(_again, planted, layers):
        assert first.measured
        assert first.packed == (3, 1)
        for other in others:
            assert (other.pair, other.measured, other.packed) == (first.pair, [], (1, 1))
        assert last.measured
        assert last.packed == (3, 1)


def test_of_another_mask_it_is_chosen_anew(cpu_ranks: Ranks, tmp_path: Path) -> None:
    """By that a kernel may take longer."""
    planted = Planted(tmp_path, FIRST | {FUSED: [30.0] * 2})
    layers = [("block_shock", {"mask": mask} | BOTH, B) for mask in ("1100", "tile", "1100")]
    for found in cpu_ranks.run(_again, planted, layers):
        assert [one.packed for one in found] == [(3, 1), (3, 1), (1, 1)]


def _known_by(planted: Planted, known: list[float]) -> list[Found]:
    """Where the folder has that for every key, on rank 0."""
    with pairs_planted(planted) as (patch, measured, packings):
        patch.setattr(combined._measured, "known", lambda _: known)
        return [build_and_ask(*HALVES, measured, packings)]


def test_what_is_remembered_of_other_candidates_is_measured_again(cpu_ranks: Ranks, tmp_path: Path) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [35.5, 35.5]})
    assert FUSED in _check([found for (found,) in cpu_ranks.run(_known_by, planted, [1.0] * 99)], FUSED)


@pytest.mark.parametrize("given", [{"backward": True}, {"training": Training()}], ids=["backward", "training"])
@EACH
def test_what_goes_backward_has_the_kernel_of_the_fastest_product(
    method: str, given: dict[str, Any], cpu_ranks: Ranks, tmp_path: Path
) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [1.0, 1.0]})
    measured = _check(cpu_ranks.run(build_planted, planted, method, PICKS[method], given), PLAIN)
    assert {kernel for kernel, _ in measured} == {"gathered"}


@pytest.mark.parametrize("other", [{"format": "int8"}, {"kernel": "gathered"}, {"combine": "one_shot"}], ids=str)
@EACH
def test_what_has_no_such_sum_or_is_picked_is_not_chosen(
    method: str, other: dict[str, str], cpu_ranks: Ranks, tmp_path: Path
) -> None:
    products = {"gathered": [1.0, 1.0], "summing": [2.0, 2.0], "reference": [1.5, 1.5]}
    planted = Planted(tmp_path, FIRST | {FUSED: [1.0, 1.0]}, products)
    for found in cpu_ranks.run(build_planted, planted, method, PICKS[method] | other):
        kernels = {found.pair[0], *(kernel for kernel, _ in found.measured)}
        assert kernels == {"reference" if "format" in other else "gathered"}
        assert found.packed == (1, 1)
        assert found.error < 1e-2


def test_features_that_are_gathered_need_no_sum(cpu_ranks: Ranks, tmp_path: Path) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [1.0, 1.0]})
    measured = _check(cpu_ranks.run(build_planted, planted, "pruned_tp_col", PICKS["pruned_tp_row"]), PLAIN)
    assert {kernel for kernel, _ in measured} == {"gathered"}


def test_a_kernel_that_sums_and_is_fastest_by_itself_is_tried_alone(cpu_ranks: Ranks, tmp_path: Path) -> None:
    products = {"gathered": [2.0, 2.0], "summing": [1.0, 1.0], "reference": [3.0, 3.0]}
    planted = Planted(tmp_path, FIRST | {FUSED: [35.5, 35.5]}, products)
    found = cpu_ranks.run(build_planted, planted, *HALVES)
    measured = _check(found, FUSED)
    assert {kernel for kernel, _ in measured} == {"summing"}
    assert found[0].packed == (1, 1)


def test_columns_in_another_order_go_through_it(cpu_ranks: Ranks, tmp_path: Path) -> None:
    """What a pruner permutes is gathered first, by whichever kernel is held."""
    plain, products = ("reference", "one_shot"), {"reference": [1.0, 1.0], "summing": [2.0, 2.0]}
    for seconds, pair in ((30.0, FUSED), (90.0, plain)):
        planted = Planted(tmp_path / str(seconds), {plain: [44.8] * 2, FUSED: [seconds] * 2}, products)
        picks = {"pruner": "magnitude:permute=yes"} | BOTH
        assert FUSED in _check(cpu_ranks.run(build_planted, planted, "pruned_tp_row", picks), pair)


def _without(planted: Planted, missing: str) -> list[Found]:
    """Twice, on machines that cannot do something, or by a kernel that does something wrong."""

    def lost(*_: object) -> None:
        raise InputError("out of reach")

    with pairs_planted(planted) as (patch, measured, packings):
        if missing == "peers' memory":
            patch.setattr(symmetric, "workspace_for", lost)
        elif missing == "right sums":
            patch.setattr(PackedSumming, "wrong", True)
        else:
            patch.setattr(Summing, "pack", lambda self, piece, bias=None, backward=False: Twisted(piece, bias))
        return [build_and_ask(*HALVES, measured, packings) for _ in range(2)]


@pytest.mark.parametrize("missing", ["peers' memory", "right sums", "right products"])
def test_what_cannot_be_or_is_wrong_is_not_taken(missing: str, cpu_ranks: Ranks, tmp_path: Path) -> None:
    planted = Planted(tmp_path, FIRST | {FUSED: [1.0, 1.0], ("summing", "one_shot"): [1.0, 1.0]})
    way = "nccl" if missing == "peers' memory" else "one_shot"
    for both in cpu_ranks.run(_without, planted, missing):
        for found in both:
            assert found.pair == ("gathered", way)
            assert found.error < 1e-2
            assert found.packed[1] == 1
            assert FUSED not in found.measured
            assert ("summing" in {kernel for kernel, _ in found.measured}) == (missing == "right sums")


@pytest.mark.parametrize("given", [{}, {"training": Training()}], ids=["forward", "training"])
@pytest.mark.parametrize("method", [*PICKS, "pruned_tp_col"])
def test_where_that_sum_is_picked_auto_takes_a_kernel_that_has_it(
    method: str, given: dict[str, Any], cpu_ranks: Ranks, tmp_path: Path
) -> None:
    planted = Planted(tmp_path, {})
    picks = PICKS.get(method, PICKS["pruned_tp_row"]) | {"combine": "fused"}
    found = cpu_ranks.run(build_planted, planted, method, picks, given)
    assert _check(found, FUSED) == [], "there is nothing to choose"
    assert found[0].packed == (1, 1)


def _refused(planted: Planted) -> str:
    with pairs_planted(planted) as (patch, measured, packings):
        patch.setattr(Summing, "unsuitable", lambda *_: "takes none of these")
        with pytest.raises(InputError) as refused:
            build_and_ask("block_shock", PICKS["block_shock"] | {"combine": "fused"}, measured, packings)
    return str(refused.value)


def test_where_no_kernel_has_it_that_is_said(cpu_ranks: Ranks, tmp_path: Path) -> None:
    for said in cpu_ranks.run(_refused, Planted(tmp_path, {})):
        assert said == "combine fused: the sum is the kernel's, and gathered has none"


@pytest.mark.parametrize(
    ("features", "tokens", "reason"),
    [
        (96, 16, None),
        (90, 16, "the sum is the kernel's, and streamed cannot: needs N to be a multiple of 16"),
        (96, 65, "is for up to 64 tokens, there are 65"),
        (96, 200, "streamed cannot: kernel streamed is for up to 128 tokens"),
    ],
)
def test_the_axis_says_it_before_anything_is_built(features: int, tokens: int, reason: str | None) -> None:
    source = GeneratedWeights(features, 96, torch.bfloat16, "cpu")
    found = axis_of("combine").unsuitable("fused", Layer(source, {"kernel": "auto", "mask": "1100"}, tokens))
    assert found is None if reason is None else reason in str(found)
