"""An axis is one class: a user's own has its option, its part of ids and saved rows, and is asked for again by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inner_pytest import start, suite

from blockshock.report.again import commands
from blockshock.saved.results import read_run

TOYS = """
from blockshock import AXES, METHODS, Axis
from blockshock.registry import Registry

TOYS = Registry("toy")

@TOYS.register("ball")
def ball(size=1): return f"a ball of {size}"

@TOYS.register("top")
def top(): return "a top"

@AXES.register("toy")
class ToyAxis(Axis):
    registry = TOYS

@METHODS.register("toyed")
class Toyed(METHODS.get("dense_single")):
    axes = ("toy",)

    def __init__(self, layer, group):
        super().__init__(layer, group)
        entry, parameters = TOYS.resolve(layer.pick("toy"))
        self.toy = entry(**parameters)

    @property
    def algorithm(self): return self.toy
"""
SMALL = ["--device=cpu", "--ranks=1", "--N=64", "--B=4", "--workloads=gaussian", "-p", "no:cacheprovider"]


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    session = start(folder, *SMALL, *arguments)
    output, _ = session.communicate()
    return session.returncode, output


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite(tmp_path_factory.mktemp("toys"), "test_phase0_correctness.py", conftest=TOYS)


def test_a_users_own_axis_is_picked_run_saved_and_asked_for_again(toys: Path) -> None:
    asked = "--methods=toyed,dense_single", "--toys=ball:size=3", "--cover=grid", "--benchmark-save=toys"
    status, output = run(toys, *asked)
    assert status == pytest.ExitCode.OK, output
    (path,) = toys.glob("benchmark_results/*/0001_toys.json")
    rows = {row["name"]: row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]}
    point = "gaussian-N64-K64-B4-bf16"
    assert set(rows) == {f"test_forward_is_right[{row}-{point}]" for row in ("toyed-ball:size=3", "dense_single")}
    row, dense = (rows[f"test_forward_is_right[{name}-{point}]"] for name in ("toyed-ball:size=3", "dense_single"))
    assert (row["toy"], row["picks"], row["label"]) == ("ball:size=3", {"toy": "ball:size=3"}, "toyed ball:size=3")
    assert row["algorithm"] == "a ball of 3"
    assert (dense["toy"], dense["picks"]) == (None, {})
    assert "--toys ball:size=3" in next(commands(read_run(path)))


def test_it_is_checked_shown_and_covered_as_ours_are(toys: Path) -> None:
    status, output = run(toys, "--collect-only", "-q", "-k", "toyed")
    assert {line.split("[")[1].split("-")[1] for line in output.splitlines() if "[toyed-" in line} == {"ball", "top"}
    assert "toyed-top-recorded-N1536-K384" in output, "in the pairs of choices too"
    status, output = run(toys, "--toys=bal")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "--toys: no toy is named 'bal'. Did you mean 'ball'? Choices: ball, top" in output
    status, output = run(toys, "--help")
    assert "for toyed: of ball, top. Default all" in " ".join(output.split())
