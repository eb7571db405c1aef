"""What a user adds, one decorated thing of each kind, in a file of --extend or a package, is found wherever ours are.

On ranks, in options, saved rows, tables, plots and verdicts. Without a conftest.py, so no tracked file is edited.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from inner_pytest import start, suite
from torchrun_jobs import job

from blockshock.__main__ import main
from blockshock.registry import extensions
from blockshock.report.comparison import comparison
from blockshock.report.models import model_lines
from blockshock.report.run_tables import run_tables
from blockshock.saved.results import read_run

FILE = """
import torch
from blockshock import HYPOTHESES, KERNELS, METHODS, WORKLOADS, Hypothesis, Workload, best_of
from blockshock.methods import Span

@WORKLOADS.register("spiky")
class Spiky(Workload):
    def draw(self, B, K, stream): return torch.randn(B, K, generator=stream, device=stream.device) ** 3

@KERNELS.register("plain_one")
class Plain(KERNELS.get("reference")):
    pass

@METHODS.register("backwards")
class Backwards(METHODS.get("dense_single")):
    role = "subject"

    def partial(self, x_BK): return super().partial(x_BK.flip(0)).flip(0)

@HYPOTHESES.register("Flip")
class FlippingPays(Hypothesis):
    '''Taking rows from the last to the first makes a layer faster.'''

    subject, rivals = "backwards", best_of(span=Span.ONE)
"""
"""What a user hands over with --extend."""
PACKAGE = """
import torch
from blockshock import MASKS, MODELS, Linear, Model, TiledMask
from blockshock.pruning import PRUNERS, Pruner

from . import half  # as only a module of a package can

@MASKS.register("middle_two")
def middle(source):
    return TiledMask(torch.tensor([[0, 1, 1, 0]], device=source.device).bool(), source.N, source.K)

@PRUNERS.register("last_two")
class LastTwo(Pruner):
    def prune(self, w_RK, start):
        kept_4 = torch.arange(4, device=w_RK.device) >= half.OF_FOUR
        return w_RK, kept_4.repeat(len(w_RK), w_RK.shape[1] // 4)

MODELS.register("toy")(Model("nowhere", (Linear("up", 64, 64, 2), Linear("down", 64, 64, 3))))
"""
"""What an installed package has, which its entry point names."""
OPTIONS = [
    "--device=cpu",
    "--extend=mine.py",
    "--layers=toy",
    "--B=4",
    "--rounds=3",
    "--warmup-rounds=1",
    "--cover=grid",
    "--workloads=spiky",
]
OPTIONS += ["--methods=backwards,pruned,block_shock,dense_single", "--kernels=plain_one", "--masks=middle_two"]
OPTIONS += ["--pruners=last_two", "-p", "no:cacheprovider"]
JOB_OPTIONS = ["--N=64" if option == "--layers=toy" else option for option in OPTIONS]
POINT = "spiky-N64-K64-B4-bf16"
ROWS = ("backwards", "pruned-plain_one-last_two", "block_shock-plain_one-middle_two", "dense_single")


pytest_plugins = ["pytester"]


class Session(NamedTuple):
    """A finished run: where, and its saved rows by name."""

    folder: Path
    rows: dict[str, dict[str, Any]]


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]}


def extended(folder: Path, *phases: str) -> Path:
    """A folder with these phases, the file, and the package as pip installs it."""
    suite(folder, *phases)
    (folder / "mine.py").write_text(FILE)
    (folder / "own_things").mkdir()
    (folder / "own_things" / "__init__.py").write_text(PACKAGE)
    (folder / "own_things" / "half.py").write_text("OF_FOUR = 2\n")
    (folder / "own_things-1.0.dist-info").mkdir()
    (folder / "own_things-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: own_things\nVersion: 1\n"
    )
    (folder / "own_things-1.0.dist-info" / "entry_points.txt").write_text("[blockshock.extensions]\nall = own_things\n")
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    phases = "test_phase0_correctness.py", "test_phase1_forward.py", "test_hypotheses.py"
    folder = extended(tmp_path_factory.mktemp("own"), *phases)
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
        assert any(label in row for row in told["Time over the best dense"].rows)
    assert "taking rows" in shown
    plots = {plot.name for plot in (session.folder / "report" / "plots").glob("*.svg")}
    assert "heat.svg" in plots
    assert "--kernels plain_one" in page
    assert "--pruners last_two" in page
    assert "--extend=mine.py" in page


def test_layers_of_a_users_model_are_added_up(session: Session) -> None:
    times = {row: session.rows[f"test_forward[{row}-{POINT}]"] for row in ROWS}
    assert times["dense_single"]["layers"] == [
        {"model": "toy", "name": name, "count": count, "of": 5, "listed": False}
        for name, count in (("up", 2), ("down", 3))
    ]
    lines = [line for line in model_lines(read_run(session.folder / "run.json")) if ": backwards, time" in line]
    (line,) = lines
    assert line.startswith("forward, all 5 linear layers of toy, 4 tokens (spiky, bf16): ")


BROKEN = {
    "none.py": (None, "--extend: there is no file none.py: name a Python file that registers something"),
    "odd.py": ("import torch\nx = (\n", "--extend: odd.py, line 2: SyntaxError: '(' was never closed"),
    "idle.py": (
        "from blockshock import METHODS\n\nclass Mine(METHODS.get('dense_single')): ...",
        "--extend: idle.py registers nothing: decorate what it adds, a method by @METHODS.register('its_name') say",
    ),
    "raises.py": (
        "\n\n1 / 0",
        "--extend: raises.py, line 3: ZeroDivisionError: division by zero. Mend it, or leave it out",
    ),
    "odd_role.py": (
        "from blockshock import METHODS\n@METHODS.register('mine')\nclass Mine(METHODS.get('dense_single')):\n"
        "    role = 'subjekt'",
        "--extend: odd_role.py, line 3: InputError: Mine: there is no role 'subjekt'. Choices: subject, rival, "
        "ablation. Mend it, or leave it out",
    ),
    "twice.py": (
        "from blockshock import MODELS\nMODELS.register('vit-l')(None)",
        "--extend: twice.py, line 2: InputError: cannot register the model 'vit-l': the name is taken",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_loaded_is_an_error_that_says_why(name: str, pytester: pytest.Pytester) -> None:
    text, says = BROKEN[name]
    if text is not None:
        (pytester.path / name).write_text(text)
    pytester.makeini(f"[pytest]\naddopts = --extend={name}")
    result = pytester.runpytest_inprocess("-p", "blockshock.plugin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in " ".join(result.errlines)
    assert "Traceback" not in " ".join(result.errlines + result.outlines)
    assert name not in str(extensions())


def test_an_installed_extension_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    folder = extended(tmp_path)
    (folder / "own_things" / "half.py").unlink()
    inner = start(folder, "--collect-only")
    output, _ = inner.communicate()
    assert inner.returncode == pytest.ExitCode.USAGE_ERROR, output
    said = "the extension 'all' of the package own_things cannot be imported: own_things: ImportError: "
    assert said in output
    assert "Mend it, or do without it: python -m pip uninstall own_things" in output


def test_ranks_of_torchrun_know_them(tmp_path: Path) -> None:
    folder = extended(tmp_path, "test_phase0_correctness.py")
    # The job's own options come first, and the last of each counts; but a size stands against a model's name.
    with job(folder, ["--standalone", "--nproc-per-node=2"], *JOB_OPTIONS, "--benchmark-json=run.json") as process:
        output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    rows = _rows(folder / "run.json")
    assert sorted(rows) == sorted(f"test_forward_is_right[{row}-{POINT}]" for row in ROWS)
    assert {info["status"] for info in rows.values()} == {"right"}
