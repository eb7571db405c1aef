"""The limit of a benchmark's time: what each method must do, what the machine reaches, and what follows from both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from blockshock.measure.roofline import Ceilings, Line, Operand, Work, demands, limit, product
from blockshock.methods import METHODS
from blockshock.phases import ceilings as phase
from blockshock.phases import train
from blockshock.phases.case import Case, build
from blockshock.plugin.ceilings import Measuring
from blockshock.plugin.limits import describe_limits
from blockshock.ranks import RankLost, Ranks, RankTimeout

N, K, B = 192, 256, 8
CEILINGS = Ceilings(
    memory_bytes_per_s=1e6,
    cache_bytes=1000,
    dense_flops_per_s={"bf16": 1e9},
    sparse_flops_per_s={"bf16": 5e8},
    all_reduce=Line(1e-3, 1e6),
    all_gather=Line(5e-4, 2e6),
    launch_s=1e-5,
)
DENSE, HALF = N * K, N * K // 2
X, Y = 2 * B * K, 2 * B * N

FORWARD = {
    "dense_single": Work(Counter(dense=2 * B * DENSE), 2 * DENSE + X, 0, Y),
    "dense_tp_row": Work(Counter(dense=B * DENSE), DENSE + X // 2, 0, Y, (("all_reduce", Y),)),
    "dense_tp_col": Work(Counter(dense=B * DENSE), DENSE + X, 0, Y // 2, (("all_gather", Y),)),
    "dtensor_row": Work(Counter(dense=B * DENSE), DENSE + X // 2, 0, Y, (("all_reduce", Y),)),
    "dtensor_col": Work(Counter(dense=B * DENSE), DENSE + X, 0, Y // 2, (("all_gather", Y),)),
    "masked_split_dense": Work(Counter(dense=2 * B * DENSE), 2 * DENSE + X, 0, Y, (("all_reduce", Y),)),
    "block_shock gathered": Work(Counter(dense=B * DENSE), DENSE + X, 0, Y, (("all_reduce", Y),)),
    # 9/16 of dense: kept values, and half a byte of positions for each group of four.
    "block_shock reference": Work(Counter(dense=B * DENSE), DENSE + DENSE // 8 + X, 0, Y, (("all_reduce", Y),)),
}
BACKWARD_MESSAGES = {"all_reduce": "all_gather", "all_gather": "all_reduce"}


def _case(row: str, **more: Any) -> Case:
    method, _, kernel = row.partition(" ")
    case = Case(method, {"kernel": kernel, "mask": "1100"}, "gaussian", N, K, B, "bf16", **more)
    return case.of(method, METHODS.get(method).axes)


@pytest.mark.parametrize(("dtype", "packed"), [("bf16", 2 * DENSE), ("fp32", 0)])
def test_a_parameter_that_is_what_multiplies_is_packed_by_no_write(dtype: str, packed: int, cpu_ranks: Ranks) -> None:
    """In float32 both may be one memory."""
    case = replace(_case("dense_single", optimizer="sgd"), dtype=dtype)
    for work in cpu_ranks.run(_training, case):
        assert work["update"].written_bytes == 4 * DENSE + packed


@pytest.mark.parametrize("row", [row for row in FORWARD if "split" not in row])
def test_a_training_step_of_each_method_has_work(row: str, cpu_ranks: Ranks) -> None:
    for work in cpu_ranks.run(_training, _case(row, optimizer="sgd")):
        assert work["update"].written_bytes >= 4 * DENSE // 4


def _total(case: Case, backward: bool) -> Work:
    works = build(case, backward).method.work(case.B, backward)
    return sum(works.values(), Work())


def _training(case: Case) -> dict[str, Work]:
    built = build(case)
    return train.work_of_step(case, built.method)


@pytest.mark.parametrize("row", FORWARD)
def test_the_work_of_a_forward_pass(row: str, cpu_ranks: Ranks) -> None:
    assert cpu_ranks.run(_total, _case(row), False) == [FORWARD[row]] * 2


@pytest.mark.parametrize("row", FORWARD)
def test_the_work_of_both_passes(row: str, cpu_ranks: Ranks) -> None:
    forward = FORWARD[row]
    local_x, local_y = X // 2 if "row" in row else X, forward.written_bytes
    weights = forward.first_bytes - local_x
    # Halves of the mask 1100 have gradients of different columns: these are gathered too.
    back = tuple((BACKWARD_MESSAGES[name], X) for name, _ in forward.messages)
    backward = Work(forward.flops, local_y, weights, local_x, back)
    assert cpu_ranks.run(_total, _case(row), True) == [forward + backward] * 2


@pytest.mark.parametrize(
    ("storage", "packed"), [("compressed", 2), ("masked", 2), ("masked:every=4", 0.5), ("masked:every=0", 0)]
)
def test_the_work_of_a_training_step(storage: str, packed: float, cpu_ranks: Ranks) -> None:
    case = _case("block_shock gathered", optimizer="adamw").picking(storage=storage)
    (work, other), frozen = cpu_ranks.run(_training, case), cpu_ranks.run(_total, case.frozen, True)[0]
    assert work == other
    assert work["products"] + work["communication"] == frozen + Work(Counter(dense=2 * B * HALF))
    trained = 4 * (HALF if storage == "compressed" else DENSE)
    assert work["update"] == Work(first_bytes=3 * trained, written_bytes=int(3 * trained + packed * HALF))


def test_what_the_cache_may_hold_is_not_asked_of_the_memory() -> None:
    work = Work(Counter(), first_bytes=5000, again_bytes=3000, written_bytes=900)
    assert work.memory_bytes(cache_bytes=1000) == 5000 + 2000
    assert work.memory_bytes(cache_bytes=1000, flushed=False) == 4000 + 2000
    assert work.memory_bytes(cache_bytes=0) == 8900
    assert product(2, [Operand(10, 20)], read=4, written=6) == Work(Counter(dense=40), 24, 0, 6)
    assert product(2, [Operand(10, 20)], read=4, written=6, again=True) == Work(Counter(dense=40), 4, 20, 6)


@pytest.mark.parametrize(
    ("work", "seconds", "resource"),
    [
        (Work(Counter({"dense": 2_000_000, "2:4": 1_000_000}), 100), 4e-3, "compute"),
        (Work(Counter(dense=1000), 5000, 3000, 2000), 8e-3, "memory"),
        (Work(Counter(dense=1000), 0, 0, 0, (("all_reduce", 1000), ("all_gather", 1000))), 3e-3, "communication"),
    ],
)
def test_the_limit_is_that_of_the_busiest_resource(work: Work, seconds: float, resource: str) -> None:
    assert limit(demands(work, CEILINGS, "bf16")) == (pytest.approx(seconds), resource)


def test_a_line_lies_under_all_times_and_touches_one() -> None:
    times = [(1 << 10, 10e-6), (1 << 20, 20e-6), (1 << 26, 230e-6), (1 << 28, 900e-6)]
    line = Line.below(times)
    gaps = [seconds - line.seconds(size) for size, seconds in times]
    assert min(gaps) == pytest.approx(0, abs=1e-12)
    assert 1 / line.bytes_per_s == pytest.approx(890e-6 / ((1 << 28) - (1 << 10)))
    assert Line.below([(1, 1e-9), (2, 2e-9)]).latency_s == 0
    sagging = [(1 << 10, 1e-6), (1 << 20, 2e-6), (1 << 28, 1e-3)]  # faster by the byte in the middle
    line = Line.below(sagging)
    assert line.latency_s == 0
    assert min(seconds - line.seconds(size) for size, seconds in sagging) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no line: 8 bytes took 2 s, 16 bytes 1 s"):
        Line.below([(8, 2), (16, 1)])


def test_a_row_says_how_much_of_the_limit_it_reaches() -> None:
    work = {"products": Work(Counter(dense=2_000_000), 1000), "communication": Work(messages=(("all_reduce", 500),))}
    stages = {"layout": 1.0, "matmul": 4.0, "reduce": 2.0}
    info: dict[str, Any] = {"stages": {name: {"p50_ms": ms} for name, ms in stages.items()}, "alone": {}}
    found = describe_limits(work, CEILINGS, "bf16", True, [8e-3, 7e-3, 9e-3], info)
    assert (found["limit_ms"], found["of_limit"]) == (pytest.approx(2), pytest.approx(0.25))
    assert found["bound_by"] == "compute"
    shares = {part: round(of["of_limit"], 6) for part, of in found["limits"].items()}
    assert shares == {"products": 0.4, "communication": 0.75}
    assert found["work"] == {"flops": 2_000_000, "unit": "dense", "memory_bytes": 1000}
    by_itself = info | {"alone": {"partial": {"p50_ms": 2.5}}}
    assert describe_limits(work, CEILINGS, "bf16", True, [8e-3], by_itself)["limits"]["products"]["of_limit"] == 0.8
    tiny = {"products": Work(Counter(dense=1))}
    assert describe_limits(tiny, CEILINGS, "bf16", True, [1e-4], {})["bound_by"] == "launch"


def test_parts_that_cannot_be_told_apart_have_no_share() -> None:
    work = {name: Work(Counter(dense=1000)) for name in ("products", "communication", "update")}
    names = ("matmul", "grad_x", "grad_w", "reduce", "optimizer")
    info: dict[str, Any] = {"stages": {name: {"p50_ms": 1.0} for name in names}, "alone": {"forward": {"p50_ms": 1.0}}}
    assert set(describe_limits(work, CEILINGS, "bf16", True, [1.0], info)["limits"]) == {"products", "update"}
    del info["stages"]["grad_x"], info["stages"]["grad_w"]  # as of DTensor
    assert set(describe_limits(work, CEILINGS, "bf16", True, [1.0], info)["limits"]) == {"update"}


def test_a_row_has_the_limits_whose_ceilings_are_known() -> None:
    work = {"products": Work(Counter(dense=2_000_000), 1000), "communication": Work(messages=(("all_reduce", 500),))}
    info: dict[str, Any] = {"stages": {name: {"p50_ms": 1.0} for name in ("matmul", "reduce")}}

    def parts(**missing: Any) -> tuple[bool, set[str]]:
        found = describe_limits(work, replace(CEILINGS, **missing), "bf16", True, [1.0], info)
        assert found["work"]["flops"] == 2_000_000
        return "limit_ms" in found, set(found["limits"])

    assert parts() == parts(all_gather=None, sparse_flops_per_s={}) == (True, {"products", "communication"})
    assert parts(launch_s=None) == (False, {"products", "communication"})
    assert parts(all_reduce=None) == (False, {"products"})
    assert parts(dense_flops_per_s={}) == (False, {"communication"})
    assert parts(memory_bytes_per_s=None) == (False, set())


def _keep_in(folder: str | None) -> str | None:
    """Have this rank remember what it measures there; returns where it did before."""
    before = os.environ.pop("XDG_CACHE_HOME", None)
    if folder is not None:
        os.environ["XDG_CACHE_HOME"] = folder
    return before


def test_ceilings_are_measured_on_all_ranks_together_and_kept(cpu_ranks: Ranks, tmp_path: Path) -> None:
    before, _ = cpu_ranks.run(_keep_in, str(tmp_path))
    try:
        measuring = Measuring(cpu_ranks, "sync", flush=True)
        found = measuring.ceilings(("fp32",))
        said: list[str] = []
        again = Measuring(cpu_ranks, "sync", flush=True, stage=lambda text: nullcontext(said.append(text)))
        assert again.ceilings(("fp32",)) == found
        assert said == [], "nothing is measured twice"
        assert Measuring(cpu_ranks, "sync", flush=False, stage=again._stage).ceilings(("fp32",)) != found
        assert len(said) == 6, "launch, memory, dense, 2:4, all-reduce, all-gather: for other options anew"
    finally:
        cpu_ranks.run(_keep_in, before)
    assert measuring.missing == {}
    line, other = cpu_ranks.run(phase.sum_line, "sync", True, 0.0)
    assert line == other
    assert set(found.dense_flops_per_s) == {"fp32"}
    assert found.sparse_flops_per_s == {}, "a CPU has no sparse tensor cores"
    numbers = [found.memory_bytes_per_s, found.cache_bytes, found.launch_s, found.dense_flops_per_s["fp32"]]
    assert found.all_reduce is not None
    assert found.all_gather is not None
    assert min(*numbers, found.all_reduce.bytes_per_s, found.all_gather.bytes_per_s) > 0


def test_what_is_kept_is_forgotten_after_a_day_and_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    now = [1e9]
    monkeypatch.setattr(phase.time, "time", lambda: now[0])
    found = {"launch": 1e-6, "memory": [1e9, 4096], "2:4 bf16": None}
    phase.keep("here", found)
    assert (phase.recall("here"), phase.recall("elsewhere")) == (found, {})
    for seconds in (phase.KEPT_SECONDS, -1.0):  # or the clock was set back
        now[0] = 1e9 + seconds
        assert phase.recall("here") == {}
    now[0] = 1e9
    (file,) = tmp_path.glob("blockshock/*.json")
    for damaged in (
        "{",
        "[]",
        '{"here": {"at": 1e9, "found": {"launch": "fast"}}}',
        '{"here": {"at": 1e9, "found": 3}}',
    ):
        file.write_text(damaged)
        assert phase.recall("here") == {}
    phase.keep("here", found)
    assert phase.recall("here") == found
    file.parent.chmod(0o500)
    phase.keep("here", {})
    file.parent.chmod(0o700)


class Times:
    """In place of a stopwatch: the seconds that it gives, one after the other."""

    device, group = torch.device("cpu"), None

    def __init__(self, *seconds: list[float]) -> None:
        self.left = [second for series in seconds for second in series]

    def __call__(self, _: object) -> float:
        return self.left.pop(0)


def test_a_line_that_does_not_fit_is_measured_again() -> None:
    sound = [1e-3 + size / 1e9 for size in phase.MESSAGE_BYTES["cpu"]]

    def fit(*series: list[float]) -> Line:
        return phase._line(cast(Any, Times(*series)), 1e-3, lambda group, message: [lambda: None])

    line = fit(sound[::-1], sound[::-1], sound)
    assert (line.latency_s, line.bytes_per_s) == (pytest.approx(0, abs=1e-9), pytest.approx(1e9))
    with pytest.raises(ValueError, match="no line: 1024 bytes took"):
        fit(*[sound[::-1]] * phase.TRIES)


def test_a_ceiling_that_fails_is_missing_and_a_rank_that_is_lost_is_an_error() -> None:
    failing: dict[str, Exception] = {}

    def run(function: Callable[..., Any], *args: Any) -> list[Any]:
        if function in (phase.recall, phase.keep):
            return [{}]
        if error := failing.get(function.__name__):
            raise error
        lines = dict.fromkeys(("sum_line", "gather_line"), Line(0.0, 1.0))
        return [(lines | {"memory_and_cache": (1.0, 1)}).get(function.__name__, 1.0)]

    def found() -> tuple[Ceilings, dict[str, str]]:
        measuring = Measuring(cast(Any, SimpleNamespace(size=2, device="cpu", run=run)), "sync", flush=True)
        return measuring.ceilings(("bf16", "fp32")), measuring.missing

    whole, missing = found()
    assert missing == {}
    failing |= {"memory_and_cache": ZeroDivisionError(), "gather_line": RankTimeout("no answer\nand stacks")}
    assert found() == (
        replace(whole, memory_bytes_per_s=None, cache_bytes=0, all_gather=None),
        {"memory": "ZeroDivisionError", "all-gather": "RankTimeout: no answer"},
    )
    failing |= {"dense_flops_per_s": ValueError("x"), "launch_s": ValueError("y")}
    assert found()[0] == Ceilings(None, 0, {}, {"bf16": 1.0, "fp32": 1.0}, None, None, None)
    failing["memory_and_cache"] = RankLost("rank 1 is gone")
    with pytest.raises(RankLost):
        found()


def test_ceilings_of_formats_are_measured_where_there_are_any(cpu_ranks: Ranks, tmp_path: Path) -> None:
    before, _ = cpu_ranks.run(_keep_in, str(tmp_path))
    try:
        measuring = Measuring(cpu_ranks, "sync", flush=False)
        found = measuring.ceilings(("fp32",), ("int8", "fp8"))
    finally:
        cpu_ranks.run(_keep_in, before)
    assert set(found.dense_flops_per_s) == {"fp32", "int8", "fp8"}
    assert found.sparse_flops_per_s == {}, "a CPU has no sparse tensor cores"
    assert found.flops_per_s("int8", "fp32") == found.dense_flops_per_s["int8"]
    assert measuring.missing == {}


def test_limits_are_computed_without_torch() -> None:
    code = "import sys, blockshock.report.limits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
