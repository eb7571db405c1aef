"""Real pytest runs of the phases, small: what is saved, shown, skipped and survived."""

from __future__ import annotations

import gc
import gzip
import json
import re
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from inner_pytest import start, suite

import blockshock.plugin  # loaded before pytester notes what is: torch cannot be loaded twice
from blockshock.measure.accuracy import Accuracy
from blockshock.methods import AXES
from blockshock.phases.trajectory import TrajectoryResult
from blockshock.report.answer import answer
from blockshock.saved.results import read_run
from blockshock.training.optimizers import OPTIMIZERS

pytest_plugins = ["pytester"]
PHASES = {
    "test_phase0_correctness.py": ["test_forward_is_right"],
    "test_phase1_forward.py": ["test_forward"],
    "test_phase2_backward.py": ["test_gradient_is_right", "test_backward"],
    "test_phase3_train.py": ["test_training_is_dense_equivalent", "test_training_step"],
}
SMALL = ["--device=cpu", "--N=64", "--B=4", "--rounds=3", "--warmup-rounds=1", "--cover=grid", "--workloads=cubed"]
POINT = "cubed-N64-K64-B4-bf16"

USERS_OWN = """
import torch
from blockshock import MASKS, METHODS, WORKLOADS, Workload
from blockshock.matrices import pattern_mask

@WORKLOADS.register("cubed")
class Cubed(Workload):
    def draw(self, B, K, stream): return torch.randn(B, K, generator=stream, device=stream.device) ** 3

@MASKS.register("middle")
def middle(source):
    return pattern_mask("0110", source.N, source.K, source.device)

@METHODS.register("mine")
class Mine(METHODS.get("dense_single")):
    def __init__(self, layer, group, gain=2.0):
        super().__init__(layer, group)
        self.gain = gain

    def partial(self, x_BK): return self.gain * super().partial(x_BK / self.gain)

    @property
    def algorithm(self): return f"gain {self.gain}"

@METHODS.register("wrong")
class Wrong(METHODS.get("dense_single")):
    def partial(self, x_BK): return super().partial(x_BK) * 1.1

@METHODS.register("raises")
class Raises(METHODS.get("dense_single")):
    def partial(self, x_BK): raise RuntimeError("a fault of its own")
"""
TOO_BUSY = """
from blockshock.phases import ceilings

ceilings._reduce = None
"""
"""One of the machine's ceilings cannot be measured."""
MINE = "mine:gain=4"
DESCRIBED = {
    *("phase", "label", "method", "workload", "N", "K", "B", "dtype"),
    *("seed", "keep_full_weight", "device", "ranks", "optimizer", *AXES.names()),
    *("role", "promise", "span", "picks", "kind", "point", "rivals", "status"),
}
CHECKED = {*(field.name for field in fields(Accuracy)), "same_on_ranks", "same_again", "algorithm"}
TIMED = {
    *("algorithm", "timing", "l2_flushed", "flush", "warmup_rounds", "weight_bytes", "estimated_weight_bytes"),
    *("building_peak_bytes", "steady_peak_bytes", "layout_copied_bytes", "p50_ms", "p95_ms", "tokens_per_s"),
    "builds_p50_ms",
    *("dense_equivalent_tflops", "weight_gb_per_s", "stages", "communication_share", "alone"),
    *("limit_ms", "of_limit", "bound_by", "limits", "work"),
}
BESIDE_DENSE = {*(field.name for field in fields(TrajectoryResult)), "worst_weight_share", "steps"}
TRAINED = {
    *("backward_p50_ms", "update_p50_ms"),
    *("parameter_bytes", "gradient_bytes", "state_bytes", "training_bytes"),
}
SAVED = {
    "test_forward_is_right": ("phase 0", CHECKED),
    "test_forward": ("phase 1", TIMED),
    "test_gradient_is_right": ("phase 2 grad_X", CHECKED | {"losses"}),
    "test_backward": ("phase 2", TIMED | {"backward_p50_ms"}),
    "test_training_is_dense_equivalent": ("phase 3 beside dense", BESIDE_DENSE),
    "test_training_step": ("phase 3", TIMED | TRAINED),
}
MACHINE = {
    *("torch", "cuda", "nccl", "cusparselt", "gpus", "driver", "interconnect"),
    *("cpu", "cpu_cores", "python", "git_commit", "machines", "ceilings"),
}


class Run(NamedTuple):
    """A finished pytest."""

    status: int
    output: str


def run_pytest(folder: Path, *arguments: str) -> Run:
    session = start(folder, *SMALL, *arguments)
    output, _ = session.communicate()
    return Run(session.returncode, output)


class Story(NamedTuple):
    """A run of phases 0 and 1 in which one method gives a wrong result and another raises halfway; 2 for one method."""

    folder: Path
    run: Run
    saved: dict[str, Any]
    rows: dict[str, dict[str, Any]]  # the saved benchmarks by name


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = suite(tmp_path_factory.mktemp("story"), *PHASES, conftest=USERS_OWN + TOO_BUSY)
    methods = f"--methods=dense_single,wrong,raises,{MINE},masked_split_dense"
    # One restart of the ranks will do, and one method in phase 2.
    chosen = "test_forward_is_right or (test_forward and not raises) or mine"
    options = "--masks=middle", "--optimizers=sgd", "--benchmark-save=first", "--json-report"
    run = run_pytest(folder, methods, "-k", chosen, *options)
    files = list(folder.glob("benchmark_results/*/0001_first.json"))
    assert len(files) == 1, run.output
    saved = json.loads(files[0].read_text())
    return Story(folder, run, saved, {row["name"]: row for row in saved["benchmarks"]})


def test_a_failure_loses_no_result_and_the_next_test_gets_a_working_group(story: Story) -> None:
    assert story.run.status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^=+ 2 failed, 13 passed, 2 skipped", story.run.output, re.MULTILINE)
    assert "RuntimeError: a fault of its own" in story.run.output
    assert "relative error" in story.run.output
    for name in ("wrong", "raises"):
        named = rf"^FAILED tests/test_phase0_correctness\.py::test_forward_is_right\[{name}-{POINT}\]"
        assert re.search(named, story.run.output, re.MULTILINE), "in the summary"
    saved = {name: row["extra_info"] for name, row in story.rows.items()}
    checked = {name: info for name, info in saved.items() if info["status"] != "measured"}
    assert {name for name in saved if "_right" in name or "_equivalent" in name} == checked.keys()
    wrong, raising = (f"test_forward_is_right[{name}-{POINT}]" for name in ("wrong", "raises"))
    assert {name: info["status"] for name, info in checked.items()} == dict.fromkeys(checked, "right") | {
        wrong: "wrong",
        raising: "wrong",
    }
    assert checked[raising]["failure"] == "it raised RuntimeError: a fault of its own", "its times are not believed"
    passed = [f"{name}-{POINT}" for name in ("dense_single", MINE, "masked_split_dense-middle")]
    wanted = [f"test_forward_is_right[{name}]" for name in passed] + [f"test_forward[{name}]" for name in passed]
    wanted += [raising, *(f"{test}[wrong-{POINT}]" for test in ("test_forward_is_right", "test_forward"))]
    wanted += [f"{test}[{MINE}-{POINT}]" for test in ("test_gradient_is_right", "test_backward")]
    wanted += [f"test_training_step[{MINE}-sgd-{POINT}]"]
    beside = [f"{MINE}-{name}-gaussian-N256-K192-B4-fp32" for name in OPTIMIZERS.names()]
    wanted += [f"test_training_is_dense_equivalent[{case}]" for case in beside]
    assert sorted(story.rows) == sorted(wanted)


def test_a_users_own_workload_mask_and_method_run_on_the_ranks(story: Story) -> None:
    mine, split = (
        story.rows[f"test_forward_is_right[{name}-{POINT}]"]["extra_info"]
        for name in (MINE, "masked_split_dense-middle")
    )
    assert (mine["workload"], split["mask"]) == ("cubed", "middle")
    assert (mine["method"], mine["label"], mine["algorithm"]) == (MINE, MINE, "gain 4.0")
    assert mine["error_ratio"] <= 2
    assert 0 < split["relative_error"] < 0.01


def test_saved_rows_describe_themselves(story: Story) -> None:
    for name, row in story.rows.items():
        test, _, _ = name.partition("[")
        phase, measured = SAVED[test]
        measured = set() if "[raises" in name else measured
        point = (
            "gaussian N=256 K=192 B=4 fp32"
            if test == "test_training_is_dense_equivalent"
            else "cubed N=64 K=64 B=4 bf16"
        )
        assert row["group"] == " ".join(filter(None, [phase, point, row["extra_info"]["optimizer"]]))
        no_limit = {"limit_ms", "of_limit", "bound_by"} if name.startswith("test_forward[masked_split") else set()
        halves = {"quality_of_half"} if name.startswith("test_forward_is_right[masked_split") else set()
        why = {"failure"} if row["extra_info"]["status"] == "wrong" else set()
        assert set(row["extra_info"]) == (DESCRIBED | measured | halves | why) - no_limit
    assert set(story.saved["machine_info"]["blockshock"]) == MACHINE


def test_a_ceiling_that_cannot_be_measured_costs_no_more_than_the_limits_that_need_it(story: Story) -> None:
    ceilings = story.saved["machine_info"]["blockshock"]["ceilings"]
    assert [name for name, value in ceilings.items() if value is None] == ["all_reduce"]
    split = story.rows[f"test_forward[masked_split_dense-middle-{POINT}]"]["extra_info"]
    assert set(split["limits"]) == {"products"}, "the part that needs it has none"
    (told,) = re.findall(r"^No ceiling of .*", story.run.output, re.MULTILINE)
    assert told.startswith("No ceiling of all-reduce (TypeError: 'NoneType' object is not callable): it could not be")


def test_every_sample_is_saved_and_sums_up_as_shown(story: Story) -> None:
    timed = [
        row
        for name, row in story.rows.items()
        if name.startswith(("test_forward[", "test_backward[", "test_training_step["))
    ]
    assert len(timed) == 6
    for row in timed:
        stats, info = row["stats"], row["extra_info"]
        data = stats["data"]
        assert (len(data), stats["rounds"], stats["iterations"]) == (3, 3, 1)
        assert (stats["min"], stats["median"]) == (min(data), statistics.median(data))
        assert info["p50_ms"] == pytest.approx(stats["median"] * 1e3)
        assert info["p95_ms"] == pytest.approx(np.percentile(data, 95) * 1e3)


def test_a_session_says_what_it_does(story: Story) -> None:
    told = re.findall(r"^blockshock: ((?:starting|measuring) .*)$", story.run.output, re.MULTILINE)
    assert told[:2] == ["starting 1 CPU rank", "starting 2 CPU ranks"]
    assert set(told[2:]) == {"measuring the machine's ceilings"}
    assert re.search(
        r"^17 of 17 done in \d+:\d\d, about 0:00 to go: test_training_step\[", story.run.output, re.MULTILINE
    )


def test_the_answer_ends_the_run(story: Story) -> None:
    """Below all else that pytest says: the skipped, the failed, and how long it took but for one line."""
    before, _, shown = story.run.output.partition(" Block-Shock =")
    assert "short test summary info" in before
    assert "Name (time in" not in before, "pytest-benchmark's own tables say the same again"
    told, saved, last = shown.rpartition("\nSaved: ")[0], *shown.rpartition("\nSaved: ")[2].splitlines()[:2]
    assert re.fullmatch(r"benchmark_results/\S+/0001_first\.json", saved)
    assert " passed" in last
    words = " ".join(told.split())
    assert re.search(rf"{len(story.rows)} results, \d+ checked: 2 WRONG", words)
    for name in ("wrong", "raises"):
        assert f"WRONG: {name} in 1 of 1 check, at " in words
    for line in answer(read_run(story.folder / saved)):
        assert " ".join(line.split()) in words
    assert len(told.splitlines()) < 34


def test_the_json_report_holds_the_numbers_of_each_test(story: Story) -> None:
    report = json.loads((story.folder / ".report.json").read_text())
    for name, row in story.rows.items():
        (test,) = [test for test in report["tests"] if test["nodeid"].endswith(f"::{name}")]
        properties = {key: value for entry in test["user_properties"] for key, value in entry.items()}
        assert properties == row["extra_info"]


def test_a_run_compares_with_the_saved_one(story: Story) -> None:
    chosen = ["-k", "test_forward and not right", "--ranks=1", f"--methods={MINE}"]
    run = run_pytest(
        story.folder,
        *chosen,
        *("--benchmark-compare=0001", "--profile", "--no-ceilings"),
        "--benchmark-json=profiled.json",
    )
    assert run.status == pytest.ExitCode.OK, run.output
    assert "profiler_start" not in run.output
    assert re.search(rf"^test_forward\[{MINE}-{POINT}\] \(0001_first\) ", run.output, re.MULTILINE)
    assert re.search(rf"^test_forward\[{MINE}-{POINT}\] \(NOW\) ", run.output, re.MULTILINE)
    ours = run.output.partition(" Block-Shock =")[2]
    assert "p50 in ms, 0001_first.json → this session: 1 benchmark in all of them" in ours
    assert re.search(r"^(test_forw.*%|(none of 1 differs|1 of 1 undecided), geomean .*%)", ours, re.MULTILINE), (
        "whichever it was"
    )
    assert (
        f"phase 1 {POINT.replace('-', ' ').replace('N64', 'N=64').replace('K64', 'K=64').replace('B4', 'B=4')}" in ours
    )

    (row,) = json.loads((story.folder / "profiled.json").read_text())["benchmarks"]
    assert "limit_ms" not in row["extra_info"], "nothing was measured that it could be held against"
    (trace,) = row["extra_info"]["traces"]
    assert f"1 trace, for Perfetto or Chrome's tracing: {Path(trace).parent}" in run.output
    events = json.loads(gzip.decompress((story.folder / trace).read_bytes()))["traceEvents"]
    kernels = row["extra_info"]["kernels"]
    in_both = {kernel["name"] for kernel in kernels} & {event.get("name") for event in events}
    assert in_both & {"aten::mm", "aten::addmm", "aten::linear"}
    assert 0 < sum(kernel["share"] for kernel in kernels) <= 1 + 1e-9
    assert set(kernels[0]) == {"name", "kind", "calls", "ms", "share"}


def test_garbage_is_collected_but_not_looked_for_in_what_imports_made() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000, "torch's, which conftest.py freezes here as in every session"


def test_workers_share_the_checks_and_refuse_to_time(tmp_path: Path) -> None:
    names = "not [gpus] and not dense_equivalent"
    chosen = ["-m", "correctness or bench", "-k", names, "--methods=dense_tp_row,mine", "--optimizers=sgd"]
    (tmp_path / "mine.py").write_text(USERS_OWN)
    run = run_pytest(suite(tmp_path, *PHASES), "-n2", "--ranks=1", "--extend", "mine.py", *chosen)
    assert run.status == pytest.ExitCode.OK, run.output
    why = "timing beside other workers measures them too: run `pytest -m bench` without -n"
    for name in ("test_phase1_forward", "test_phase2_backward", "test_phase3_train"):
        assert re.search(rf"^SKIPPED \[2\] tests/{name}\.py:\d+: {re.escape(why)}$", run.output, re.MULTILINE)
    assert re.search(r"^=+ 4 passed, 6 skipped", run.output, re.MULTILINE)
    end = run.output.rpartition("= Block-Shock =")[2]
    assert "4 results, 4 checked: all right" in " ".join(end.split()), "found by workers, said by the one process"
    assert "without -n, --benchmark-autosave saves a run" in end


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner run is not one of the outer one's xdist workers, where this test may be running."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(blockshock.plugin, "timed_alone", pytest.mark.bench)


def test_samples_become_the_rounds_of_a_benchmark_to_the_last_bit(pytester: pytest.Pytester) -> None:
    samples = [[3e-6, 1e-6, 2.7e-6], [0.1, 0.2, 0.3, 1e-7, 1e3], [0.125]]
    pytester.makepyfile(f"""
        import pytest
        from blockshock.plugin.clock import clock

        @pytest.mark.benchmark(timer=clock)
        @pytest.mark.parametrize("samples", {samples!r}, ids=str)
        def test_replay(samples, benchmark):
            clock.replay(benchmark, samples)
    """)
    result = pytester.runpytest_inprocess("--benchmark-save=run", "--benchmark-save-data", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=len(samples))
    (saved,) = pytester.path.glob(".benchmarks/*/0001_run.json")
    rows = json.loads(saved.read_text())["benchmarks"]
    assert [row["stats"]["data"] for row in rows] == samples
    for row, data in zip(rows, samples, strict=True):
        stats = row["stats"]
        assert (stats["min"], stats["max"], stats["rounds"]) == (min(data), max(data), len(data))
        assert stats["median"] == statistics.median(data)
