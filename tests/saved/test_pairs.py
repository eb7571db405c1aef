"""Are the verdicts sound? The same against itself, planted slowdowns, a machine that drifts, clocks that lie."""

from collections import Counter
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pytest

from blockshock.phases.builds import MOST_BLOCKS
from blockshock.phases.case import Case
from blockshock.phases.claims import claims
from blockshock.phases.hypotheses import HYPOTHESES
from blockshock.plugin.records import describe_verdict
from blockshock.plugin.settings import Settings
from blockshock.saved.pairs import (
    Ratio,
    blocks_needed,
    change_of_blocks,
    half_gained,
    quantile,
    ratio_of_blocks,
    ratio_of_pairs,
)

DENSE = ("dense_single", "dense_tp_row", "dense_tp_col", "dtensor_row", "dtensor_col")
CASE = Case("block_shock", {"kernel": "gathered", "mask": "1100"}, "gaussian", 64, 64, 4, "bf16")
BLOCKS, ROUNDS, TRIES = 10, 20, 400


class Call(NamedTuple):
    """How much builds and rounds scatter, and by which factor a slowdown must be found."""

    builds: float
    rounds: float
    slower: float
    seconds: float


CALLS = {"short": Call(0.01, 0.02, 1.03, 27e-6), "long": Call(0.003, 0.01, 1.01, 175e-6)}
"""On GPUs, of some 27 µs and of 175 µs."""
SHORT, LONG = CALLS.values()


def _rounds(stream: np.random.Generator, count: int, noise: float = 0.02) -> np.ndarray:
    """Durations with the noise of a GPU, and now and then an interruption."""
    late = stream.random(count) < 0.05
    return np.exp(stream.normal(0, noise, count)) * (1 + late * stream.exponential(0.5, count))


def _blocks(stream: np.random.Generator, call: Call, factor: float = 1.0) -> list[np.ndarray]:
    """Blocks of one call, each of a build of its own."""
    builds = factor * np.exp(stream.normal(0, call.builds, BLOCKS))
    return [build * _rounds(stream, ROUNDS, call.rounds) for build in builds]


def _in_two_stages(stream: np.random.Generator, call: Call) -> tuple[Ratio, int]:
    """A pair whose second is the slower one, in as many blocks as its pilot asks for; and how many that are."""
    pair = [[call.seconds * block for block in _blocks(stream, call, factor)] for factor in (1.0, call.slower)]
    wanted = min(blocks_needed(*pair), MOST_BLOCKS["cuda"])
    while len(pair[0]) < wanted:
        for which, factor in enumerate((1.0, call.slower)):
            pair[which] += [call.seconds * block for block in _blocks(stream, call, factor)]
    first, second = (blocks[:wanted] for blocks in pair)
    return ratio_of_blocks(first, second, pilot=BLOCKS), wanted


def _interval_over_rounds(first: np.ndarray, second: np.ndarray, seed: int) -> Ratio:
    """The planted fault: what verdicts rested on before, resampled rounds of one build of each."""
    picked = np.random.default_rng(seed).integers(0, len(first), (500, len(first)))
    ratios = np.median(first[picked], axis=1) / np.median(second[picked], axis=1)
    return Ratio(float(np.median(ratios)), *map(float, np.quantile(ratios, [0.025, 0.975])))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_against_itself_is_rarely_called_different(call: Call) -> None:
    stream, found = np.random.default_rng(1), Counter[str]()
    for _ in range(TRIES):
        ratio = ratio_of_blocks(*(_blocks(stream, call) for _ in range(2)))
        found += Counter({ratio.verdict(): 1, "different": ratio.differs})
    # 5 % of 400 are 20, and three standard deviations of such a count are 13.
    assert found["different"] <= 20 + 13
    assert found["different"] >= 20 - 13, "intervals that hold the truth more often than they say are too wide"
    assert found["faster"] + found["slower"] <= 1


def test_an_interval_over_rounds_of_one_build_is_fooled() -> None:
    stream, fooled = np.random.default_rng(2), 0
    for seed in range(100):
        builds = [np.exp(stream.normal(0, SHORT.builds)) * _rounds(stream, BLOCKS * ROUNDS) for _ in range(2)]
        fooled += _interval_over_rounds(*builds, seed).differs
    assert fooled > 50


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_slowdown_is_found(call: Call) -> None:
    stream = np.random.default_rng(3)
    tries = [ratio_of_blocks(_blocks(stream, call), _blocks(stream, call, call.slower)) for _ in range(TRIES)]
    assert sum(found.differs and found.value < 1 for found in tries) >= 0.95 * TRIES
    assert np.mean([found.value for found in tries]) == pytest.approx(1 / call.slower, rel=0.001)


SCATTERED = {"short": Call(0.028, 0.02, 1.03, 27e-6), "long": Call(0.01, 0.01, 1.01, 175e-6)}
"""As two ranks and their collective do at worst."""


@pytest.mark.parametrize("call", SCATTERED.values(), ids=SCATTERED)
def test_builds_that_scatter_take_more_blocks(call: Call) -> None:
    stream = np.random.default_rng(8)
    few = [ratio_of_blocks(_blocks(stream, call), _blocks(stream, call, call.slower)) for _ in range(TRIES)]
    assert sum(found.high < 1 for found in few) < 0.8 * TRIES, "ten blocks would do"
    more = [_in_two_stages(stream, call) for _ in range(TRIES)]
    assert sum(found.high < 1 for found, _ in more) >= 0.95 * TRIES
    same = [_in_two_stages(stream, call._replace(slower=1.0)) for _ in range(TRIES)]
    assert sum(found.differs for found, _ in same) <= 20 + 13
    assert sum(found.verdict() in ("faster", "slower") for found, _ in same) <= 2
    # A difference beyond doubt takes no more blocks than it did.
    assert {blocks for _, blocks in (_in_two_stages(stream, call._replace(slower=2.0)) for _ in range(50))} == {BLOCKS}


def test_a_pilot_of_no_blocks_is_refused() -> None:
    blocks = [[1.0, 1.1], [1.2], [1.1]]
    assert ratio_of_blocks(blocks, blocks, pilot=2) == Ratio(1, 1, 1)
    for pilot in (0, 1, 4):
        with pytest.raises(ValueError, match=f"got {pilot} of 3"):
            ratio_of_blocks(blocks, blocks, pilot=pilot)


def test_a_machine_that_drifts_fools_unpaired_blocks_and_not_pairs() -> None:
    stream, fooled = np.random.default_rng(4), Counter[str]()
    for _ in range(100):
        speed = np.linspace(1.0, 1.2, 2 * BLOCKS * ROUNDS)  # the machine grows slower all the while
        times = speed * _rounds(stream, len(speed))
        in_turn = [times[which::2].reshape(BLOCKS, ROUNDS) for which in range(2)]
        one_after_the_other = times.reshape(2, BLOCKS, ROUNDS)
        fooled += Counter(pairs=ratio_of_blocks(*in_turn).verdict() == "faster")
        fooled += Counter(unpaired=ratio_of_blocks(*one_after_the_other).verdict() == "faster")
    assert fooled["pairs"] <= 2
    assert fooled["unpaired"] == 100


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(0.9, 0.88, 0.92), "faster"),
        (Ratio(0.985, 0.98, 0.991), "undecided"),
        (Ratio(1.0, 0.995, 1.005), "tie"),
        (Ratio(0.998, 0.992, 0.999), "tie"),
        (Ratio(1.0, 0.98, 1.02), "undecided"),
        (Ratio(1.015, 1.005, 1.02), "undecided"),
        (Ratio(1.2, 1.1, 1.3), "slower"),
    ],
)
def test_verdicts(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict() == verdict


def test_an_interval_of_more_than_a_factor_of_1_5_is_wide() -> None:
    assert not Ratio(1.0, 0.8, 1.2).wide
    assert Ratio(1.0, 0.8, 1.21).wide


def test_quantiles_are_those_of_student() -> None:
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 9: 2.262, 15: 2.131, 19: 2.093, 30: 2.042}
    assert {freedom: round(quantile(freedom), 3) for freedom in printed} == printed
    assert quantile(10**5) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-4)


def test_an_interval_is_that_of_the_logarithms_over_the_blocks() -> None:
    first, second = [[2.0, 4.0, 8.0], [8.0], [4.0, 4.0]], [[1.0], [1.0], [1.0]]
    found = ratio_of_blocks(first, second)  # ratios 4, 8, 4: log₂ 2, 3, 2, of mean 7/3 and standard error 1/3
    assert found.value == pytest.approx(2 ** (7 / 3))
    assert (found.low, found.high) == tuple(pytest.approx(2 ** ((7 + sign * quantile(2)) / 3)) for sign in (-1, 1))


def test_a_change_of_ratios_is_the_quotient_of_two_pairs() -> None:
    stream = np.random.default_rng(5)
    before = _blocks(stream, LONG), _blocks(stream, LONG, 2.0)
    after = _blocks(stream, LONG, 1.5), _blocks(stream, LONG, 2.0)
    found = change_of_blocks(before, after)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.05
    pairs = {"training": before, "forward": after}
    saved = {name: {"first": first, "second": second, "pilot": BLOCKS} for name, (first, second) in pairs.items()}
    assert ratio_of_pairs(saved) == found
    assert ratio_of_pairs({"training": saved["training"]}) == ratio_of_blocks(*before)
    with pytest.raises(ValueError, match="not about nothing"):
        ratio_of_pairs({})


def test_a_change_between_equal_pairs_is_rarely_seen() -> None:
    stream = np.random.default_rng(6)
    tries = [
        change_of_blocks(*(tuple(_blocks(stream, call) for _ in range(2)) for call in CALLS.values()))
        for _ in range(TRIES)
    ]
    assert sum(found.differs for found in tries) <= 20 + 13


GAINS = {  # T_row ÷ T_dense, L_row ÷ L_dense → the ratio, by what H9 says
    (0.8, 0.8): 0.8 * (1 + 0.25 / 2),
    (0.9, 0.5): 0.9 * (1 + 1 / 2),
    (1.2, 1.5): 1.2,
    (1.0, 1.0): 1.0,
}


@pytest.mark.parametrize(("times", "ratio"), GAINS.items())
def test_half_of_what_layers_gain_is_what_a_network_is_held_to(times: tuple[float, float], ratio: float) -> None:
    pairs = {
        name: {"first": [[time * scale] for scale in (1, 2, 3)], "second": [[1.0], [2.0], [3.0]], "pilot": 3}
        for name, time in zip(("network", "linears"), times, strict=True)
    }
    found = ratio_of_pairs(pairs)
    assert (found.low, found.value, found.high) == tuple(pytest.approx(ratio) for _ in range(3))
    whole, layers = (1 / time - 1 for time in times)
    assert (found.value < 1) == (whole > max(layers, 0) / 2)


def test_of_a_network_the_interval_is_that_of_both_pairs_together() -> None:
    stream = np.random.default_rng(7)
    pair = lambda ratio: (_blocks(stream, LONG, ratio), _blocks(stream, LONG))  # noqa: E731
    found = half_gained(pair(0.8), pair(0.5))
    assert found.low < 0.8 * 1.5 < found.high
    assert found.verdict() == "slower"
    first, second = pair(0.8)
    with pytest.raises(ValueError, match="in the same blocks"):
        half_gained((first, second), (first[1:], second[1:]))
    with pytest.raises(ValueError, match="in the same blocks"):
        half_gained((first, second, 4), (first, second))


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([], [], "two or more"),
        ([[1.0]], [[1.0]], "got 1, 1"),
        ([[1.0], [1.0]], [[1.0]], "got 2, 1"),
        ([[1.0], []], [[1.0], [1.0]], "without a round"),
        ([[1.0], [1.0]], [[0.0], [1.0]], "clock"),
        ([[float("nan")], [1.0]], [[1.0], [1.0]], "clock"),
    ],
)
def test_a_measurement_that_is_not_sound_is_refused(
    first: list[list[float]], second: list[list[float]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        ratio_of_blocks(first, second)


def test_what_is_saved_of_a_verdict_gives_its_ratio_again(settings: Settings) -> None:
    stream = np.random.default_rng(7)
    trained = replace(CASE, optimizer="sgd").picking(storage="masked")
    for claim in claims([CASE], [trained], ranks=2):
        rival, *_ = claim.rivals
        blocks = {
            name: {which: [list(block) for block in _blocks(stream, SHORT)] for which in ("first", "second")}
            | {"pilot": 6}
            for name in claim.hypothesis.passes
        }
        info = describe_verdict(claim, rival, {rival.label: 1.0}, blocks, "", settings)
        again = ratio_of_pairs(info["blocks"])
        assert (info["ratio"], info["ratio_low"], info["ratio_high"]) == (again.value, again.low, again.high)
        assert info["verdict"] == again.verdict(info["margin"])
        assert info["flush"] == ("clean" if settings.flush else "none")
        assert (info["rival"], info["rival_method"], info["rivals"]) == (rival.label, rival.method, {rival.label: 1.0})


def test_claims_name_rivals_at_the_same_point() -> None:
    storages = ("masked", "compressed", "masked:every=10", "masked:every=0")
    trained = [replace(CASE, optimizer="sgd").picking(storage=storage) for storage in storages]
    found = list(claims([CASE, CASE.of("dense_single")], trained, ranks=2))
    assert Counter(claim.name for claim in found) == {"H1": 1, "H2": 2, "H3": 1, "H4": 1, "H5": 2}
    assert HYPOTHESES.names()[:6] == ("H1", "H2", "H3", "H4", "H5", "H6")
    by_name = {claim.name: [rival.id for rival in claim.rivals] for claim in found}
    assert by_name == {
        "H1": [f"{method}-gaussian-N64-K64-B4-bf16" for method in DENSE],
        "H2": ["dense_tp_row-sgd-gaussian-N64-K64-B4-bf16"],
        "H3": ["masked_split_dense-1100-gaussian-N64-K64-B4-bf16"],
        "H4": ["dense_single-gaussian-N64-K64-B4-bf16"],
        "H5": [f"{method}-sgd-gaussian-N64-K64-B4-bf16" for method in DENSE],
    }
    alone = {claim.name: [rival.method for rival in claim.rivals] for claim in claims([CASE], trained, ranks=1)}
    one = ["dense_single"]
    assert alone == {"H1": one, "H3": ["masked_split_dense"], "H4": one, "H5": one}, (
        "one rank has no tensor parallelism"
    )
    assert found[0].id == "H1-block_shock-gathered-1100-gaussian-N64-K64-B4-bf16"
    assert found[0].group == "H1 block_shock gathered 1100 against the best dense one"
    assert found[1].group == "H2 block_shock gathered 1100 masked sgd against dense_tp_row"
