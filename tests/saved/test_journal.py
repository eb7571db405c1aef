"""What is finished is not lost: a session that is killed can be recovered, or resumed, and saved runs are whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import start, suite
from pytest_benchmark.utils import safe_dumps
from resolving import CPU_DEFAULTS

from blockshock.__main__ import main
from blockshock.plugin import resuming
from blockshock.plugin.resuming import LATER, take_over
from blockshock.plugin.session import decisive
from blockshock.plugin.settings import Settings
from blockshock.saved import journal, recovering
from blockshock.saved.results import read_run

METHODS = "dense_single,dense_tp_row,dense_tp_col,dtensor_row,dtensor_col,block_shock,masked_split_dense"
OPTIONS = [
    "--device=cpu",
    "--ranks=1",
    "--N=64",
    "--B=4",
    "--cover=grid",
    "--workloads=gaussian",
    f"--methods={METHODS}",
]
COUNT = 9
"""Tests that these options select: of each method, block_shock with two kernels, and the one that is for two GPUs."""


KILLED = """
import os, signal
from pathlib import Path
from typing import Any

import pytest

passed = []

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.append(report.nodeid)
    if len(passed) == 3 and Path("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
"""


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start(folder, *OPTIONS, *arguments)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a session was killed as soon as three of its benchmarks were in the journal."""
    folder = suite(tmp_path_factory.mktemp("killed"), "test_phase0_correctness.py", conftest=KILLED)
    (folder / "kill").touch()
    session = _start(folder, "--benchmark-save=whole")
    output, _ = session.communicate()
    assert session.returncode == -signal.SIGKILL, output
    (folder / "kill").unlink()
    return folder


def _lines(folder: Path) -> list[str]:
    found = list(folder.glob("benchmark_results/journal/*/metrics.jsonl"))
    return found[0].read_text().splitlines() if found else []


def test_a_killed_session_is_recovered_and_then_resumed(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = [line for line in _lines(killed) if '"benchmark"' in line]
    assert 3 <= len(finished) < COUNT - 1
    monkeypatch.chdir(killed)
    assert main(["recover"]) == 0
    path = Path(capsys.readouterr().out.removeprefix("Saved: ").strip())
    run = read_run(path)
    assert path.name == "0001_recovered.json"
    assert len(run.records) == len(finished)
    assert run.machine["torch"]
    assert run.records[0]["samples"], "every sample is there"

    (metrics,) = killed.glob("benchmark_results/journal/*/metrics.jsonl")
    passed = len(journal.read_journal(metrics.parent).passed)
    with metrics.open("a") as file:
        file.write('\n{"benchmark": {"fullname": "cut o')
    output = _start(killed, "--resume", "--benchmark-save=whole").communicate()[0]
    assert f"{COUNT - 1 - passed} passed" in output, output
    whole = journal.read_journal(metrics.parent)
    assert len(whole.passed) == len(whole.benchmarks) == COUNT - 1, "the line that was cut off cost no other"
    assert "resuming benchmark_results/journal/" in output
    (saved,) = killed.glob("benchmark_results/*/*_whole.json")
    names = [record["name"] for record in read_run(saved).records]
    assert len(names) == len(set(names)) == COUNT - 1, "those of before and those of now, each once"
    assert main(["recover"]) == 1
    assert "no unfinished session" in capsys.readouterr().err


def test_a_session_that_still_runs_is_not_resumed(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "running")
    (metrics,) = (tmp_path / "running").glob("benchmark_results/journal/*/metrics.jsonl")
    (metrics.parent / journal.FINISHED).unlink(missing_ok=True)
    held, before = journal.hold(metrics.parent), metrics.read_bytes()
    assert held is not None
    with pytest.raises(journal.NoJournal, match="still runs: wait for its end"):
        journal.hold(metrics.parent)
    session = _start(tmp_path / "running", "--resume")
    output = session.communicate()[0]
    assert session.returncode == pytest.ExitCode.USAGE_ERROR
    assert "still runs: wait for its end, or end it first" in output
    assert metrics.read_bytes() == before
    held.release()
    session = _start(tmp_path / "running", "--resume")
    assert "still runs" not in session.communicate()[0]


def test_a_session_holds_its_journal_until_it_ends(tmp_path: Path) -> None:
    folder = suite(tmp_path, "test_phase0_correctness.py")
    session = _start(folder)
    while not any(_benchmarks(folder)) and session.poll() is None:
        time.sleep(0.05)
    (metrics,) = folder.glob("benchmark_results/journal/*/metrics.jsonl")
    try:
        with pytest.raises(journal.NoJournal, match="still runs"):
            journal.hold(metrics.parent)
    finally:
        session.kill()
        session.communicate()
    held = journal.hold(metrics.parent)
    assert held is not None, "what is killed holds nothing"
    held.release()


def _benchmarks(folder: Path) -> list[str]:
    return [line for line in _lines(folder) if '"benchmark"' in line]


def test_what_was_recovered_is_saved_again_only_if_more_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _journal(tmp_path / "benchmark_results" / "journal" / "1", _line("a", 1))
    told = []
    for _ in range(2):
        assert main(["recover"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0].startswith("Saved: ")
    assert told[1] == told[0].replace("Saved: ", "Saved before, and nothing came since: ")
    with (folder / journal.METRICS).open("a") as file:
        file.write("\n" + _line("b", 1))
    assert main(["recover"]) == 0
    assert "0002_recovered.json" in capsys.readouterr().out
    for path in tmp_path.glob("benchmark_results/here/*.json"):
        path.unlink()
    assert recovering.recovered(folder) is None, "it is gone"
    for damaged in ("", "[]", "{}", '{"run": "../../x", "bytes": 3}', '{"run": 3, "bytes": 3}'):
        (folder / "recovered").write_text(damaged)
        assert recovering.recovered(folder) is None


def test_other_options_are_not_resumed(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "again")
    for marker in (tmp_path / "again").glob("benchmark_results/journal/*/finished"):
        marker.unlink()
    session = _start(tmp_path / "again", "--resume", "--seed=3")
    output = session.communicate()[0]
    assert session.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ran with other options: seed 0 then, 3 now" in output


def _journal(folder: Path, lines: str, **session: object) -> Path:
    folder.mkdir(parents=True)
    told = {"machine_id": "here", "machine_info": {"blockshock": {}}, "commit_info": {}, "datetime": "", "version": "5"}
    (folder / journal.SESSION).write_text(json.dumps(told | session))
    (folder / journal.METRICS).write_text(lines)
    return folder


def _told(config: pytest.Config, settings: Settings = CPU_DEFAULTS) -> dict[str, Any]:
    """What a session with these settings says of itself."""
    return json.loads(safe_dumps(decisive(config, settings)))


def _taken(config: pytest.Config, settings: Settings, storage: Path) -> resuming.Resumed:
    return take_over(config, settings, storage, decisive(config, settings))


@pytest.mark.parametrize(("masks", "asked"), [(["1100"], None), (["1010"], ["1010"])])
def test_a_journal_of_before_axes_were_classes_is_resumed(
    masks: list[str], asked: list[str] | None, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    told = _told(pytestconfig)
    earlier = told["settings"] | {"masks": masks, "training_masks": asked}
    for name in LATER:
        del earlier[name]
    _journal(tmp_path / "journal" / "1", _line("a", 1), **told | {"settings": earlier})
    others = {axis: specs for axis, specs in CPU_DEFAULTS.axes.items() if axis != "mask"}
    now = replace(CPU_DEFAULTS, axes=others | {"mask": asked and tuple(asked), "toy": ("ball",)})
    resumed = _taken(pytestconfig, now, tmp_path)
    assert resumed.journal.folder == tmp_path / "journal" / "1"
    assert resumed.held is not None
    resumed.held.release()
    with pytest.raises(pytest.UsageError, match=r"ran with other options: masks .* then, \['tile'\] now"):
        _taken(pytestconfig, replace(now, axes=now.axes | {"mask": ("tile",)}), tmp_path)


def test_what_ends_just_before_it_is_held_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    names = ("0001_a", "0002_b")
    older, newer = (_journal(tmp_path / "journal" / name, _line("a", 1), **_told(pytestconfig)) for name in names)

    def ends(folder: Path) -> object:
        if folder == newer:
            (newer / journal.FINISHED).touch()
        return journal.hold(folder)

    monkeypatch.setattr(resuming, "hold", ends)
    resumed = _taken(pytestconfig, CPU_DEFAULTS, tmp_path)
    assert resumed.journal.folder == older
    assert resumed.held is not None
    again = journal.hold(newer)
    assert again is not None, "it was let go"
    for lock in (resumed.held, again):
        lock.release()


def _line(name: str, value: int) -> str:
    bench = {"fullname": name, "name": name, "group": "g", "extra_info": {"phase": 0, "value": value}}
    return json.dumps({"benchmark": bench}) + "\n"


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    lines = _line("a", 1) + _line("b", 2) + '{"passed": "b"}\n' + '{"ceilings": {"launch_s": 1}}\n' + _line("a", 3)
    folder = _journal(tmp_path / "journal" / "1", lines + _line("c", 4)[:-9])
    saved = json.loads(recovering.recover(folder).read_text())
    assert [bench["extra_info"]["value"] for bench in saved["benchmarks"]] == [3, 2], "the last of each test"
    assert saved["machine_info"]["blockshock"]["ceilings"] == {"launch_s": 1}
    assert recovering.recover(folder).name == "0002_recovered.json"
    assert journal.read_journal(folder).passed == {"b"}


def test_the_last_unfinished_journal_is_taken(tmp_path: Path) -> None:
    with pytest.raises(journal.NoJournal, match="no unfinished session"):
        journal.unfinished_below(tmp_path)
    for name in ("1", "2", "3"):
        _journal(tmp_path / "journal" / name, _line("a", 1))
    (tmp_path / "journal" / "3" / journal.FINISHED).touch()
    assert journal.unfinished_below(tmp_path)[0][0].name == "2"


def test_journals_of_storages_below_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recover"]) == 1
    assert "no unfinished session in benchmark_results or below it" in capsys.readouterr().err
    full = Path("benchmark_results/full")
    killed = _journal(full / "journal" / "0002_killed", _line("a", 1))
    (_journal(full / "journal" / "0003_ended", _line("a", 1)) / journal.FINISHED).touch()
    assert main(["recover"]) == 0
    assert capsys.readouterr().out == f"Saved: {full}/here/0001_recovered.json\n"
    later = _journal(Path("benchmark_results/journal/0001_later"), _line("b", 1))
    ahead = max(path.stat().st_mtime for path in killed.iterdir()) + 10
    os.utime(later / journal.METRICS, (ahead, ahead))
    assert main(["recover"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "Saved: benchmark_results/here/0001_recovered.json",
        f"Unfinished too: python -m blockshock recover {killed}",
    ]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_journal_is_named(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        _journal(tmp_path / "odd", "")
        (tmp_path / "odd" / journal.SESSION).write_text(content)
    assert main(["recover", str(tmp_path / "odd")]) == 1
    assert str(tmp_path / "odd") in capsys.readouterr().err


def test_a_saved_run_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _journal(tmp_path / "journal" / "1", _line("a", 1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        recovering.recover(folder)
    assert list((tmp_path / "here").iterdir()) == []
