"""What a user adds in a conftest.py, one decorated thing of each kind, is found wherever ours are.

On ranks, in options, saved rows, tables, plots and verdicts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from inner_pytest import start, suite
from torchrun_jobs import job

from blockshock.__main__ import main
from blockshock.report.comparison import comparison
from blockshock.report.run_tables import run_tables
from blockshock.saved.results import read_run

OWN = """
import torch
from blockshock import HYPOTHESES, KERNELS, MASKS, METHODS, WORKLOADS, Hypothesis, TiledMask, Workload, best_of
from blockshock.methods import Span
from blockshock.pruning import PRUNERS, Pruner

@WORKLOADS.register("spiky")
class Spiky(Workload):
    def draw(self, B, K, stream): return torch.randn(B, K, generator=stream, device=stream.device) ** 3

@MASKS.register("middle_two")
def middle(source):
    return TiledMask(torch.tensor([[0, 1, 1, 0]], device=source.device).bool(), source.N, source.K)

@KERNELS.register("plain_one")
class Plain(KERNELS.get("reference")):
    pass

@PRUNERS.register("last_two")
class LastTwo(Pruner):
    def prune(self, w_RK, start):
        return w_RK, torch.tensor([0, 0, 1, 1], device=w_RK.device).bool().repeat(len(w_RK), w_RK.shape[1] // 4)

@METHODS.register("backwards")
class Backwards(METHODS.get("dense_single")):
    role = "subject"

    def partial(self, x_BK): return super().partial(x_BK.flip(0)).flip(0)

@HYPOTHESES.register("Flip")
class FlippingPays(Hypothesis):
    '''Taking rows from the last to the first makes a layer faster.'''

    subject, rivals = "backwards", best_of(span=Span.ONE)
"""
OPTIONS = ["--device=cpu", "--N=64", "--B=4", "--rounds=3", "--warmup-rounds=1", "--cover=grid", "--workloads=spiky"]
OPTIONS += ["--methods=backwards,pruned,block_shock,dense_single", "--kernels=plain_one", "--masks=middle_two"]
OPTIONS += ["--pruners=last_two", "-p", "no:cacheprovider"]
POINT = "spiky-N64-K64-B4-bf16"
ROWS = ("backwards", "pruned-plain_one-last_two", "block_shock-plain_one-middle_two", "dense_single")


class Session(NamedTuple):
    """A finished run: where, and its saved rows by name."""

    folder: Path
    rows: dict[str, dict[str, Any]]


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    phases = "test_phase0_correctness.py", "test_phase1_forward.py", "test_hypotheses.py"
    folder = suite(tmp_path_factory.mktemp("own"), *phases, conftest=OWN)
    chosen = ["-k", "test_forward or Flip", "--benchmark-json=run.json"]
    inner = start(folder, *OPTIONS, *chosen)
    output, _ = inner.communicate()
    assert inner.returncode == pytest.ExitCode.OK, output
    return Session(folder, _rows(folder / "run.json"))


def test_phases_run_them_and_save_what_they_are(session: Session) -> None:
    phases = [f"{test}[{row}-{POINT}]" for test in ("test_forward_is_right", "test_forward") for row in ROWS]
    assert sorted(session.rows) == sorted([*phases, f"test_hypothesis[Flip-backwards-{POINT}]"])
    saved = {row: session.rows[f"test_forward_is_right[{row}-{POINT}]"] for row in ROWS}
    assert {info["status"] for info in saved.values()} == {"right"}
    assert [saved[row]["picks"] for row in ROWS] == [
        {},
        {"kernel": "plain_one", "pruner": "last_two"},
        {"kernel": "plain_one", "mask": "middle_two"},
        {},
    ]
    assert [saved[row]["role"] for row in ROWS] == ["subject", "subject", "subject", "rival"]
    assert saved["pruned-plain_one-last_two"]["quality"]["kept_magnitude"] < 0.6, "the last two are no better than any"


def test_its_verdict_is_judged_among_those_of_one_device(session: Session) -> None:
    info = session.rows[f"test_hypothesis[Flip-backwards-{POINT}]"]
    assert (info["hypothesis"], info["rival"], info["ranks"]) == ("Flip", "dense_single", 1)
    assert info["statement"] == "taking rows from the last to the first makes a layer faster"


def test_tables_plots_and_commands_show_them(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    path = session.folder / "run.json"
    assert main(["report", str(path), "--to", str(session.folder / "report")]) == 0
    shown = capsys.readouterr().out
    run = read_run(path)
    told = {table.title.partition(":")[0]: table for table in (*run_tables(run), *comparison(run.records))}
    (flip,) = (table for title, table in told.items() if title.startswith("Flip backwards"))
    assert flip.rows
    page = (session.folder / "report" / "report.html").read_text()
    for label in ("backwards", "pruned plain_one last_two", "block_shock plain_one middle_two"):
        assert label in page
        assert any(label in row for row in told["Speed-up"].rows)
    assert "Flip" in shown
    plots = {plot.name for plot in (session.folder / "report" / "plots").glob("*.svg")}
    assert "heat.svg" in plots
    assert "--kernels plain_one" in page
    assert "--pruners last_two" in page


def test_ranks_of_torchrun_know_them(tmp_path: Path) -> None:
    folder = suite(tmp_path, "test_phase0_correctness.py", conftest=OWN)
    with job(folder, ["--standalone", "--nproc-per-node=2"], *OPTIONS, "--benchmark-json=run.json") as process:
        output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    rows = _rows(folder / "run.json")
    assert sorted(rows) == sorted(f"test_forward_is_right[{row}-{POINT}]" for row in ROWS)
    assert {info["status"] for info in rows.values()} == {"right"}
