"""Times, limits and stages, with every number that a clock, a file or a user may give."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import SPECIAL, counts, names, odd_names, times

from blockshock import stages
from blockshock.doctor import Finding, check_version, conclude, look_into
from blockshock.doctor.extras import numbers as numbers_of
from blockshock.kernels.algorithm_cache import AlgorithmCache
from blockshock.machine import memory
from blockshock.measure import roofline, timing
from blockshock.measure.roofline import Ceilings, Line, Operand, Work, demands, limit
from blockshock.phases.stage_times import time_stages
from blockshock.plugin.clock import VirtualClock
from blockshock.plugin.limits import describe_limits
from blockshock.training.steps import split_over

pytestmark = pytest.mark.reliability

CPU = torch.device("cpu")
any_times = st.lists(st.floats() | st.sampled_from(SPECIAL) | st.floats(1e-9, 1e3), max_size=6)
sizes = st.integers(0, 2**50)
rates = st.floats(1.0, 1e16)


@examples(430)
@given(st.lists(st.tuples(sizes, st.floats(1e-9, 1e3)), max_size=5), sizes)
def test_a_line_lies_below_all_points(points: list[tuple[int, float]], size: int) -> None:
    line = attempt(Line.below, points)
    if line is None:
        ordered = sorted(points)
        assert len(points) < 2 or ordered[0][0] == ordered[-1][0] or ordered[-1][1] <= ordered[0][1]
        return
    assert line.latency_s >= 0
    assert line.bytes_per_s > 0
    assert line.seconds(size) >= line.latency_s
    if line.latency_s > 0:
        assert all(line.seconds(at) <= seconds * (1 + 1e-6) + 1e-9 for at, seconds in points)


@st.composite
def ceilings(draw: Any) -> Ceilings:
    line = st.none() | st.builds(Line, st.floats(0, 1), rates)
    flops = {"bf16": draw(rates)}
    return Ceilings(draw(rates), draw(sizes), flops, flops, draw(line), draw(line), draw(st.floats(0, 1)))


works = st.builds(
    Work, st.dictionaries(st.sampled_from(("dense", "2:4")), sizes).map(Counter), sizes, sizes, sizes,
    st.lists(st.tuples(st.sampled_from(("all_reduce", "all_gather")), sizes), max_size=2).map(tuple),
)  # fmt: skip


@examples(370)
@given(one=works, two=works, of=ceilings(), flushed=st.booleans())
def test_more_work_never_takes_less_time(one: Work, two: Work, of: Ceilings, flushed: bool) -> None:
    alone, both = (attempt(demands, work, of, "bf16", flushed) for work in (one, one + two))
    if alone is None or both is None:
        assert None in (of.all_reduce, of.all_gather)
        return
    assert all(both[name] >= seconds * (1 - 1e-12) for name, seconds in alone.items())
    seconds, bound_by = limit(both)
    assert seconds == max(both.values()) == both[bound_by]
    assert one.memory_bytes(of.cache_bytes, flushed) >= 0
    assert of.flops_per_s("2:4", "bf16") == of.flops_per_s("dense", "bf16")


@examples(250)
@given(work=works, of=ceilings(), samples=times, flushed=st.booleans(), reduce=st.none() | st.floats(1e-6, 1))
def test_limits_are_shares_of_the_median(
    work: Work, of: Ceilings, samples: list[float], flushed: bool, reduce: float | None
) -> None:
    info = {} if reduce is None else {"stages": {"reduce": {"p50_ms": reduce}, "matmul": {"p50_ms": 1.0}}}
    parts = {"products": work + Work(Counter(dense=1)), "communication": work}
    found = describe_limits(parts, of, "bf16", flushed, samples, info)
    if attempt(demands, work, of, "bf16") is None:
        assert found.keys() | found["limits"].keys() == {"limits", "work"}
        return
    assert found["of_limit"] == pytest.approx(found["limit_ms"] / 1e3 / statistics.median(samples))
    assert found["limits"].keys() == ({"products", "communication"} if reduce else set())
    json.dumps(found)


@examples(190)
@given(st.integers(0, 4096), st.lists(st.builds(Operand, sizes, sizes), max_size=3), sizes, sizes, st.booleans())
def test_the_work_of_a_product_is_counted_by_hand(
    tokens: int, operands: list[Operand], read: int, written: int, again: bool
) -> None:
    work = roofline.product(tokens, operands, read, written, again)
    held = sum(operand.size for operand in operands)
    assert sum(work.flops.values()) == 2 * tokens * sum(operand.values for operand in operands)
    assert (work.first_bytes, work.again_bytes, work.written_bytes) == (
        read + (0 if again else held), held if again else 0, written
    )  # fmt: skip


@examples(310)
@given(samples=times, percent=st.integers(1, 99) | counts)
def test_percentiles_lie_between_the_samples(samples: list[float], percent: int) -> None:
    assert attempt(timing.percentile, [], percent) is None
    found = attempt(timing.percentile, samples, percent)
    assert (found is not None) == (0 < percent < 100)
    if found is None:
        return
    assert min(samples) * (1 - 1e-12) <= found <= max(samples) * (1 + 1e-12)
    assert timing.percentile(samples, 50) == pytest.approx(statistics.median(samples))
    assert timing.slowest([samples, samples[::-1]]) == [max(pair) for pair in zip(samples, samples[::-1], strict=True)]


@examples(90)
@given(st.integers(-1, 4), st.integers(-1, 3), st.integers(0, 3), st.sampled_from(("sync", "none")) | names)
def test_each_call_is_timed_in_each_round(rounds: int, warmup: int, calls: int, mode: str) -> None:
    protocol = attempt(timing.Protocol, mode, rounds, warmup, flush=False)
    assert (protocol is not None) == (rounds > 0 and warmup >= 0 and mode in timing.MODES)
    if protocol is None:
        return
    ran: Counter[int] = Counter()
    made = [lambda index=index: ran.update([index]) for index in range(calls)]
    found = timing.time_calls(made, CPU, protocol)
    timed = rounds if mode == "sync" else 0
    assert [len(samples) for samples in found] == [timed] * calls
    assert all(ran[index] == (rounds + warmup if mode == "sync" else 1) for index in range(calls))

    def staged() -> None:
        with stages.stage("matmul"), stages.stage("layout"):
            stages.copied(torch.zeros(2))

    assert all(len(seconds) == timed for seconds in time_stages(staged, CPU, protocol).seconds.values())
    assert len(timing.time_call(staged, CPU, protocol)) == timed
    assert timing.host_seconds(lambda: rounds, CPU)[0] == rounds


trees = st.recursive(st.just([]), lambda inner: st.lists(st.tuples(names, inner), max_size=3))


@examples(250)
@given(trees)
def test_stages_share_out_the_time_whole(tree: list[Any]) -> None:
    ticks = iter(range(10**6))

    def walk(branch: list[Any]) -> int:
        found = 0
        for name, inner in branch:
            with stages.stage(name):
                found += 1 + walk(inner)
        return found

    with stages.recording(lambda: next(ticks)) as recorder:
        spans = walk(tree)
    seconds = recorder.seconds(lambda start, end: end - start)
    assert next(ticks) == 2 * spans
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) <= 2 * spans
    assert stages.stage("x") is stages.stage("y")


class Benchmark:
    """As much of pytest-benchmark as the clock asks for."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock, self.samples = clock, list[float]()

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            start = self._clock()
            target()
            self.samples.append(self._clock() - start)


@examples(190)
@given(any_times)
def test_a_replayed_sample_is_the_sample(samples: list[float]) -> None:
    clock = VirtualClock()
    benchmark = Benchmark(clock)
    attempt(clock.replay, benchmark, samples)
    if not all(0 <= sample < math.inf for sample in samples):
        assert not benchmark.samples, "a clock that is not sound is refused"
        return
    assert [str(found + 0.0) for found in benchmark.samples] == [str(sample + 0.0) for sample in samples]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@examples(190)
@given(name=st.just("algorithms"), key=names, content=names | st.binary(max_size=30), answer=st.lists(st.integers()))
def test_a_damaged_cache_is_searched_again(cache: Path, name: str, key: str, content: Any, answer: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        path = cache / "blockshock" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps({key: content}).encode())
        found = AlgorithmCache(name, lambda stored: isinstance(stored, list)).get(key, lambda: answer)
        assert found == answer
        assert AlgorithmCache(name, lambda stored: isinstance(stored, list)).get(key, lambda: []) == answer


@examples(250)
@given(version=names | st.lists(counts.map(str), max_size=4).map(".".join), error=odd_names, size=sizes)
def test_the_doctor_says_what_it_was_told(version: str, error: str, size: int) -> None:
    assert all(isinstance(part, int) for part in numbers_of(version))
    findings: list[Finding] = []

    def broken(name: str) -> Finding:
        raise OSError(error)

    old = look_into(findings, lambda name: None, "a", "update it", check_version, version, "2.11")
    assert (old.state == "ok") == (numbers_of(version) >= [2, 11])
    assert look_into(findings, lambda name: None, "b", "mend it", broken).state == "broken"
    assert [finding.name for finding in findings] == ["a", "b"]
    assert conclude(findings, "cpu")[0] is False
    assert memory.gib(size).split()[1] in ("GiB", "MiB")
    assert memory.held_bytes([torch.empty(size % 99)] * 2) == size % 99 * 4
    assert split_over(torch.empty(0)) == []
