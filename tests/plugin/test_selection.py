"""Which tests of the phases there are to run: by markers, by the GPUs that there are, and by their ids."""

from __future__ import annotations

import pytest
import torch
from inner_pytest import suite
from test_plugin import PHASES, SMALL, no_worker

from blockshock.methods import METHODS, Span

pytest_plugins = ["pytester"]
__all__ = ["no_worker"]


def run_here(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the phases in this process, which must not start ranks."""
    if not (pytester.path / "tests").exists():
        suite(pytester.path, *PHASES)
    return pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "--import-mode=importlib", *SMALL, "--workloads=gaussian", *arguments
    )


@pytest.mark.parametrize("marker", ["gpu", "gpu2"])
def test_what_needs_gpus_is_skipped_without_them_with_what_to_do(marker: str, pytester: pytest.Pytester) -> None:
    result = run_here(pytester, "-m", marker)
    assert result.ret == pytest.ExitCode.OK
    assert (result.parseoutcomes()["skipped"], "passed" in result.parseoutcomes()) == (6, False)
    why = "needs CUDA GPUs, and --device auto or cuda; `pytest -m 'correctness or bench'` runs it on CPU ranks"
    for name in PHASES:
        result.stdout.fnmatch_lines([f"SKIPPED*{name}:*: {why}"])


@pytest.mark.parametrize(("gpus", "marker", "other"), [(1, "gpu", "gpu2"), (2, "gpu2", "gpu")])
def test_gpus_are_measured_by_the_marker_of_their_number(
    gpus: int, marker: str, other: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = ["--collect-only", "-q", "--device=auto", "--workloads=gaussian", "--kernels=gathered", "--combines=nccl"]
    asked += ["--recipes=ste"]
    ids = {mark: run_here(pytester, "-m", mark, *asked).outlines for mark in (marker, other)}
    timed, too = (
        [line.partition("[")[2].partition("-")[0] for line in ids[mark] if "::test_forward[" in line]
        for mark in (marker, other)
    )
    alone = [name for name in METHODS.names() if not METHODS.get(name).sharded]
    assert sorted(timed) == sorted(METHODS.names() if gpus > 1 else alone)
    one = [name for name in METHODS.names() if METHODS.get(name).span is Span.ONE]
    assert too == [*(one if gpus > 1 else []), "gpus]"], "what one GPU is enough for, and a reminder"
    if gpus == 1:
        header = run_here(pytester, "-m", marker, "--collect-only", *asked[2:]).stdout.str()
        assert "blockshock: 1 cuda rank (" in header
        assert "left out, being dense_single on one rank: dense_tp_row, dense_tp_col, dtensor_" in header


def test_ids_are_collected_as_documented(pytester: pytest.Pytester) -> None:
    asked = ["--N=8192", "--B=64", "--methods=block_shock", "--kernels=cusparselt", "--masks=1100"]
    row, point = "block_shock-cusparselt-1100", "gaussian-N8192-K8192-B64-bf16"
    ids = {"test_training_step": f"{row}-compressed-adamw-{point}"}
    ids["test_training_is_dense_equivalent"] = f"{row}-compressed-sgd-recorded-N1536-K384-B64-fp32"
    lines = run_here(pytester, "--collect-only", "-q", *asked, "--workloads=gaussian").outlines
    for name, tests in PHASES.items():
        for test in tests:
            assert f"tests/{name}::{test}[{ids.get(test, f'{row}-{point}')}]" in lines
