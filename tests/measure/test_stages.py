"""Stages of a pass, and timing on a CPU: what is recorded, how often a call runs, and which numbers come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import pytest
import torch

from blockshock.machine import memory
from blockshock.measure import timing
from blockshock.measure.timing import Protocol, percentile, slowest, time_call
from blockshock.phases.stage_times import StageTimes, time_stages
from blockshock.stages import Recorder, copied, recording, stage

CPU = torch.device("cpu")
Sleep = Callable[[float], None]


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Sleep:
    """Makes that many seconds pass, on a host clock that else stands still."""
    passed: list[float] = []
    monkeypatch.setattr(time, "perf_counter", lambda: sum(passed))
    return passed.append


def recorded_stages() -> AbstractContextManager[Recorder]:
    return recording(lambda: time.perf_counter())


def own_seconds(recorder: Recorder) -> dict[str, float]:
    return recorder.seconds(lambda start, end: end - start)


def protocol(mode: str = "sync", rounds: int = 4, warmup: int = 2, align: timing.Call = lambda: None) -> Protocol:
    return Protocol(mode, rounds, warmup, flush=False, align=align)


def test_nested_stages_are_charged_their_own_time(sleep: Sleep) -> None:
    with recorded_stages() as recorder:
        sleep(100)
        with stage("outer"):
            sleep(1)
            with stage("middle"):
                sleep(2)
                with stage("inner"):
                    sleep(4)
                sleep(8)
            sleep(16)
            with stage("inner"):
                sleep(32)
        with stage("after"):
            sleep(64)
    assert own_seconds(recorder) == {"outer": 17, "middle": 10, "inner": 36, "after": 64}


def test_a_stage_within_one_of_its_own_name_is_not_charged_twice(sleep: Sleep) -> None:
    with recorded_stages() as recorder, stage("same"):
        sleep(1)
        with stage("same"):
            sleep(2)
    assert own_seconds(recorder) == {"same": 3}


def test_a_stage_that_raises_ends_there(sleep: Sleep) -> None:
    def fail() -> None:
        with stage("outer"), stage("raises"):
            sleep(1)
            raise ZeroDivisionError

    with recorded_stages() as recorder:
        with pytest.raises(ZeroDivisionError):
            fail()
        sleep(2)
        with stage("next"):
            sleep(4)
    assert own_seconds(recorder) == {"outer": 0, "raises": 1, "next": 4}


def test_nothing_is_recorded_outside_a_recording(sleep: Sleep) -> None:
    tensor = torch.ones(3, 5)
    with recorded_stages() as recorder:
        pass
    with stage("unseen"):
        sleep(1)
        assert copied(tensor) is tensor
    assert stage("unseen") is stage("another"), "a stage that nobody records makes nothing"
    assert (own_seconds(recorder), recorder.copied_bytes) == ({}, 0)


def test_copied_bytes_add_up_while_recording(sleep: Sleep) -> None:
    half, single = torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(7)
    with recorded_stages() as recorder:
        assert copied(half) is half
        with stage("layout"):
            copied(single)
    copied(single)
    assert recorder.copied_bytes == 3 * 5 * 2 + 7 * 4


def test_a_recording_within_another_hands_back_to_it(sleep: Sleep) -> None:
    inner: list[Recorder] = []

    def record(name: str) -> None:
        with stage(name):
            sleep(1)

    def fail() -> None:
        with recorded_stages() as recorder:
            inner.append(recorder)
            record("within")
            raise ZeroDivisionError

    with recorded_stages() as outer:
        record("before")
        with pytest.raises(ZeroDivisionError):
            fail()
        record("after")
    assert [own_seconds(recorder) for recorder in [outer, *inner]] == [{"before": 1, "after": 1}, {"within": 1}]


@pytest.mark.parametrize(("rounds", "warmup"), [(4, 2), (1, 0), (3, 5)])
def test_samples_are_the_calls_after_the_warmup(rounds: int, warmup: int, sleep: Sleep) -> None:
    seconds = iter(range(1, 100))
    samples = time_call(lambda: sleep(next(seconds)), CPU, protocol(rounds=rounds, warmup=warmup))
    assert samples == [warmup + index + 1 for index in range(rounds)]
    assert next(seconds) == rounds + warmup + 1, "one call a round, warm-up or timed"


def test_ranks_are_aligned_before_each_round_and_outside_its_time(sleep: Sleep) -> None:
    events: list[str] = []

    def step(name: str, seconds: float) -> None:
        events.append(name)
        sleep(seconds)

    align = partial(step, "align", 50)
    samples = time_call(partial(step, "call", 1), CPU, protocol(rounds=3, warmup=1, align=align))
    assert events == ["align", "call"] * 4
    assert samples == [1, 1, 1]


@pytest.mark.parametrize("flush", [True, False])
def test_the_cache_is_flushed_before_each_round_unless_asked_not_to(
    flush: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "cache_bytes", lambda device: 64)
    read = []
    monkeypatch.setattr(torch, "sum", lambda buffer, dim, out: read.append(buffer.nbytes))
    time_call(lambda: None, CPU, Protocol("sync", rounds=2, warmup=1, flush=flush))
    assert read == ([64] * 3 if flush else [])


def test_mode_none_runs_the_call_once_and_times_nothing() -> None:
    calls: list[int] = []
    assert time_call(lambda: calls.append(1), CPU, protocol("none")) == []
    assert len(calls) == 1
    assert time_stages(lambda: calls.append(1), CPU, protocol("none")) == StageTimes({}, 0)
    assert len(calls) == 1


@pytest.fixture
def staged_pass(sleep: Sleep) -> Callable[[], None]:
    """Its n-th call spends n seconds in the product, one in each of two layouts, and copies 8 bytes for each."""
    seconds = iter(range(1, 100))

    def layout() -> None:
        with stage("layout"):
            sleep(1)
            copied(torch.ones(2))

    def call() -> None:
        layout()
        with stage("matmul"):
            sleep(next(seconds))
        layout()

    return call


def test_stages_are_timed_by_name_after_the_warmup(staged_pass: Callable[[], None]) -> None:
    times = time_stages(staged_pass, CPU, protocol(rounds=3, warmup=2))
    assert times.seconds == {"layout": [2, 2, 2], "matmul": [3, 4, 5]}


def test_copied_bytes_are_those_of_one_pass(staged_pass: Callable[[], None]) -> None:
    assert time_stages(staged_pass, CPU, protocol(rounds=3, warmup=2)).copied_bytes == 16


def test_a_pass_without_stages_has_none() -> None:
    assert time_stages(lambda: None, CPU, protocol()) == StageTimes({}, 0)


def test_the_slowest_rank_counts_in_each_round() -> None:
    assert slowest([[1.0, 5.0, 2.0], [3.0, 4.0, 2.5]]) == [3.0, 5.0, 2.5]
    assert slowest([[1.0, 2.0]]) == [1.0, 2.0]
    assert slowest([[], []]) == []


def test_ranks_that_ran_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        slowest([[1.0, 2.0], [1.0]])


@pytest.mark.parametrize("count", [1, 2, 3, 20, 101])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    samples = np.random.default_rng(count).lognormal(-9, 1, count).tolist()
    for percent in (1, 5, 50, 95, 99):
        assert percentile(samples, percent) == pytest.approx(np.percentile(samples, percent), rel=1e-12)
