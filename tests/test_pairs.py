"""Are the verdicts sound? The same against itself, a planted slowdown, a machine that drifts, clocks that lie."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockshock.hypotheses import HYPOTHESES, claims
from blockshock.pairs import Ratio, change_of, ratio_of
from blockshock.phases.case import Case
from blockshock.timing import Protocol, time_calls

CPU = torch.device("cpu")
CASE = Case("block_shock", "gathered", "1100", "gaussian", 64, 64, 4, "bf16")


def _noisy(stream: np.random.Generator, rounds: int, factor: float = 1.0) -> np.ndarray:
    """Durations with the noise of a GPU: 2 %, and now and then an interruption."""
    late = stream.random(rounds) < 0.05
    return factor * np.exp(stream.normal(0, 0.02, rounds)) * (1 + late * stream.exponential(0.5, rounds))


def test_the_same_against_itself_is_rarely_called_different() -> None:
    x_BK = torch.randn(48, 48)

    def product() -> torch.Tensor:
        return x_BK @ x_BK

    protocol, different = Protocol("sync", 40, 2, flush=False), 0
    for seed in range(200):
        different += ratio_of(*time_calls([product, product], CPU, protocol, seed), seed=seed).differs
    # 5 % of 200 are ten, and three standard deviations of such a count are nine.
    assert different <= 10 + 9


def test_a_slowdown_of_three_percent_is_found() -> None:
    stream = np.random.default_rng(1)
    tries = [ratio_of(_noisy(stream, 100), _noisy(stream, 100, 1.03), seed=seed) for seed in range(200)]
    assert sum(found.differs and found.value < 1 for found in tries) >= 190
    assert np.mean([found.value for found in tries]) == pytest.approx(1 / 1.03, rel=0.002)


def test_a_machine_that_drifts_fools_unpaired_medians_and_not_pairs() -> None:
    stream, fooled = np.random.default_rng(2), Counter[str]()
    for seed in range(100):
        speed = np.linspace(1.0, 1.2, 200)  # the machine grows slower all the while
        times = speed * _noisy(stream, 200)
        in_turn = ratio_of(times[0::2], times[1::2], seed=seed)
        one_after_the_other = ratio_of(times[:100], times[100:], seed=seed)
        fooled += Counter(pairs=in_turn.verdict() == "supported", unpaired=one_after_the_other.verdict() == "supported")
    assert fooled["pairs"] <= 2
    assert fooled["unpaired"] == 100


def test_calls_of_a_round_come_in_an_order_drawn_anew() -> None:
    order: list[int] = []
    calls = [lambda index=index: order.append(index) for index in range(2)]
    times = time_calls(calls, CPU, Protocol("sync", 50, 0, flush=False), seed=3)
    rounds = [tuple(order[start : start + 2]) for start in range(0, 100, 2)]
    assert set(rounds) == {(0, 1), (1, 0)}
    assert [len(samples) for samples in times] == [50, 50]
    again: list[int] = []
    time_calls([lambda i=i: again.append(i) for i in range(2)], CPU, Protocol("sync", 50, 0, flush=False), seed=3)
    assert again == order, "ranks with one seed go through the same order"


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(0.9, 0.88, 0.92), "supported"),
        (Ratio(0.985, 0.98, 0.991), "undecided"),
        (Ratio(1.0, 0.995, 1.005), "rejected"),
        (Ratio(1.2, 1.1, 1.3), "rejected"),
    ],
)
def test_verdicts(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict() == verdict


def test_a_change_of_ratios_is_the_quotient_of_two_pairs() -> None:
    stream = np.random.default_rng(4)
    before = _noisy(stream, 100), _noisy(stream, 100, 2.0)
    after = _noisy(stream, 100, 1.5), _noisy(stream, 100, 2.0)
    found = change_of(before, after)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.1


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([], [], "at least one"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([1.0], [0.0], "clock"),
        ([float("nan")], [1.0], "clock"),
    ],
)
def test_a_measurement_that_is_not_sound_is_refused(first: list[float], second: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ratio_of(first, second)


def test_claims_name_a_rival_at_the_same_point() -> None:
    trained = [replace(CASE, optimizer="sgd", storage=storage) for storage in ("masked", "compressed")]
    found = list(claims([CASE, replace(CASE, method="dense_single")], trained))
    assert Counter(claim.hypothesis.name for claim in found) == {"H1": 1, "H2": 2, "H3": 1, "H4": 1}
    assert [hypothesis.name for hypothesis in HYPOTHESES] == ["H1", "H2", "H3", "H4"]
    assert {claim.rival.id for claim in found} == {
        "dense_tp_row-gaussian-N64-K64-B4-bf16",
        "dense_tp_row-sgd-gaussian-N64-K64-B4-bf16",
        "masked_split_dense-1100-gaussian-N64-K64-B4-bf16",
        "dense_single-gaussian-N64-K64-B4-bf16",
    }
    assert found[0].id == "H1-block_shock-gathered-1100-gaussian-N64-K64-B4-bf16"
    assert found[0].group == "H1 block_shock gathered 1100 against dense_tp_row"
