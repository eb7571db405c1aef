"""``--resume`` joins nothing that does not belong together, loses nothing, and passes over what is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inner_pytest import LIGHT_OPTIONS, light_suite
from pytest_benchmark.utils import get_machine_id, safe_dumps
from resolving import CPU_DEFAULTS

import blockshock.plugin
from blockshock import registry
from blockshock.__main__ import main
from blockshock.plugin.resuming import take_over
from blockshock.plugin.session import code, decisive
from blockshock.saved import journal, recovering
from blockshock.saved.results import read_run

pytest_plugins = ["pytester"]
RUNS = Path("benchmark_results") / get_machine_id()
COUNT = 3
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner run is not one of the outer one's xdist workers, where this test may be running."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)  # which takes a second, twice a session


def run_light(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*LIGHT_OPTIONS, *arguments)


def broken(pytester: pytest.Pytester, *arguments: str, passed: int = 1) -> Path:
    """The journal of a session that died once so many of its tests had passed; of what it saved nothing is left."""
    if not (pytester.path / "test_light.py").exists():
        light_suite(pytester.path)
    before = set(RUNS.glob("*.json"))
    run_light(pytester, *arguments)
    folder = max(Path("benchmark_results/journal").iterdir())
    for name in (journal.FINISHED, "recovered"):
        (folder / name).unlink(missing_ok=True)
    for path in set(RUNS.glob("*.json")) - before:
        path.unlink()
    kept, seen = [], 0
    for line in (folder / journal.METRICS).read_text().splitlines():
        kept += [line] if seen < passed else []
        seen += '"passed"' in line
    (folder / journal.METRICS).write_text("\n".join(kept))
    return folder


def said(folder: Path, change: Change) -> None:
    """Change what the session says of itself."""
    told = json.loads((folder / journal.SESSION).read_text())
    change(told)
    (folder / journal.SESSION).write_text(json.dumps(told))


def refused(pytester: pytest.Pytester, folder: Path, *arguments: str) -> str:
    """What a --resume says that goes on with nothing, and leaves the journal as it is."""
    before = (folder / journal.METRICS).read_bytes()
    result = run_light(pytester, "--resume", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (folder / journal.METRICS).read_bytes() == before
    assert not (folder / journal.FINISHED).exists()
    held = journal.hold(folder)
    assert held is not None, "it is let go"
    held.release()
    return "\n".join(line for line in result.errlines + result.outlines if "--resume: " in line)


CHANGES: dict[str, tuple[Change, str]] = {
    "code": (lambda told: told["code"].update(blockshock="0123"), "code of blockshock 0123 then, "),
    "machine": (lambda told: told.update(machine_id="Elsewhere"), "machine_id Elsewhere then, "),
    "threads": (lambda told: told["threads"].update(torch=77), "threads: torch 77 then, "),
    **{
        name: (lambda told, name=name: told["machine_info"]["blockshock"].update({name: "odd"}), f"{name} odd then, ")
        for name in ("gpus", "driver", "torch", "cuda", "nccl", "cusparselt", "cpu", "cpu_cores")
    },
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_numbers_of_other_code_or_of_another_machine_are_not_joined(
    change: Change, named: str, pytester: pytest.Pytester
) -> None:
    folder = broken(pytester)
    said(folder, change)
    told = refused(pytester, folder)
    assert f"{folder} has numbers that are not to be joined with new ones: {named}" in told
    assert f" now. `python -m blockshock recover {folder}` saves what it has; then start anew, without --resume" in told


def test_nor_are_those_of_other_tests_extensions_and_numbers_of_threads(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = pytester.path / "mine.py"
    mine.write_text("one")
    monkeypatch.setattr(registry, "_extensions", [str(mine)])
    folder = broken(pytester)
    mine.write_text("two")
    assert "code of mine.py " in refused(pytester, folder)
    mine.write_text("one")
    (tests := pytester.path / "test_light.py").write_text(tests.read_text() + "\n")
    assert "code of test_light.py " in refused(pytester, folder)
    tests.write_text(tests.read_text()[:-1])
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert "threads: OMP_NUM_THREADS " in refused(pytester, folder)
    monkeypatch.undo()


def test_the_code_is_sources_and_data_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    package, mine = tmp_path / "package", tmp_path / "mine.py"
    names = ["__init__.py", "deep/kernel.cu", "deep/data/words.txt", "read.md", "deep/__pycache__/kernel.pyc"]
    for path in [*(package / name for name in names), mine]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    monkeypatch.setattr(blockshock, "__file__", str(package / "__init__.py"))
    changed = []
    for name in names:
        before = code([])["blockshock"]
        (package / name).write_text("after")
        changed += [name] if code([])["blockshock"] != before else []
    assert changed == names[:3]
    told = decisive(pytestconfig, replace(CPU_DEFAULTS, extend=(str(mine),)))["code"]
    mine.write_text("after")
    assert code([str(mine)])[str(mine)] != told[str(mine)]


def test_a_commit_that_leaves_the_code_as_it_is_is_gone_on_with(pytester: pytest.Pytester) -> None:
    folder = broken(pytester, "--benchmark-save=whole")
    said(folder, lambda told: told["commit_info"].update(id="of docs", dirty=True))
    run_light(pytester, "--resume", "--benchmark-save=whole").assert_outcomes(passed=COUNT - 1, deselected=1)
    assert len(read_run(RUNS / "0001_whole.json").records) == COUNT


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        ({"id": "a"}, {"id": "a"}, None),
        ({"id": "a"}, {"id": "b"}, "commit a then, b now"),
        ({"id": "a", "dirty": True}, {"id": "a", "dirty": True}, "commit a with changes then, a with changes now"),
        ({"id": "unversioned"}, {"id": "unversioned"}, "commit unversioned then, unversioned now"),
    ],
)
def test_a_journal_of_before_is_told_by_its_commit(
    then: dict[str, Any],
    now: dict[str, Any],
    named: str | None,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = broken(pytester)

    def before(told: dict[str, Any]) -> None:
        for name in ("code", "selection", "save", "tests", "threads"):
            del told[name]
        told["commit_info"] = then

    said(folder, before)
    monkeypatch.setattr("pytest_benchmark.plugin.get_commit_info", lambda project: dict(now))
    if named is None:
        assert "arguments `" in refused(pytester, folder, "-k", "2")
        run_light(pytester, "--resume", "--benchmark-autosave").assert_outcomes(passed=COUNT - 1, deselected=1)
    else:
        assert named in refused(pytester, folder)


@pytest.mark.parametrize(
    "other",
    [
        ["-k", "2"],
        ["-m", "not gpu"],
        ["--deselect=test_light.py::test_light[2]"],
        ["test_light.py::test_light[1]"],
        ["--benchmark-disable"],
    ],
    ids=lambda words: words[0],
)
def test_another_selection_is_not_taken_for_the_rest(other: list[str], pytester: pytest.Pytester) -> None:
    folder = broken(pytester, "--benchmark-save=whole")
    told = refused(pytester, folder, "--benchmark-save=whole", *other)
    assert f"{folder} ran with other options: tests `.` then, `" in told
    assert other[0].partition("=")[0] in told.partition(" then, ")[2]
    assert f"python -m blockshock recover {folder}" in told


@pytest.mark.parametrize("early", [["--collect-only"], ["--maxfail=1"]], ids=lambda words: words[0])
def test_what_stops_early_is_not_finished(early: list[str], pytester: pytest.Pytester) -> None:
    """A test that fails for a while, as the file says that it is not told apart by."""
    failing = (
        "import os\ndef pytest_runtest_call(item):\n    assert '[1]' not in item.name or 'FAIL' not in os.environ\n"
    )
    light_suite(pytester.path, failing)
    folder = broken(pytester, "--benchmark-save=whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIL", "1")
        run_light(pytester, "--resume", *early)
    assert not (folder / journal.FINISHED).exists()
    run_light(pytester, "--resume").assert_outcomes(passed=COUNT - 1, deselected=1)
    assert (folder / journal.FINISHED).exists()


@pytest.mark.parametrize("asked", ["--benchmark-save=whole", "--benchmark-autosave"])
def test_what_was_to_be_saved_is_saved_by_a_resume_that_does_not_ask_for_it(
    asked: str, pytester: pytest.Pytester
) -> None:
    folder = broken(pytester, asked)
    result = run_light(pytester, "--resume")
    result.stdout.fnmatch_lines(
        [f"resuming {folder}: 1 test of it passed and is not run again; it is saved, as it was *"]
    )
    (saved,) = RUNS.glob("*.json")
    assert len(read_run(saved).records) == COUNT
    assert (folder / journal.FINISHED).exists()
    assert recovering.recovered(folder) == saved


def test_what_was_not_to_be_saved_is_not(pytester: pytest.Pytester) -> None:
    folder = broken(pytester)
    run_light(pytester, "--resume").assert_outcomes(passed=COUNT - 1, deselected=1)
    assert not list(RUNS.glob("*.json"))
    assert (folder / journal.FINISHED).exists()


def test_where_nothing_is_left_to_measure_the_run_is_saved_and_the_session_before_comes_next(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    older = broken(pytester, "--benchmark-save=older")
    newer = broken(pytester, "--benchmark-save=newer", passed=COUNT)
    run_light(pytester, "--resume", "--collect-only")
    assert not list(RUNS.glob("*.json"))
    result = run_light(pytester, "--resume")
    assert result.ret == pytest.ExitCode.OK
    saved = RUNS / "0001_recovered.json"
    result.stdout.fnmatch_lines([f"nothing was left to measure of {newer}, and what it has is saved now: {saved}"])
    assert "Not saving anything" not in result.stdout.str() + result.stderr.str()
    assert len(read_run(saved).records) == COUNT
    assert (newer / journal.FINISHED).exists()
    (newer / journal.FINISHED).unlink()
    result = run_light(pytester, "--resume")
    result.stdout.fnmatch_lines([f"nothing was left * was saved before: {saved}"])
    assert [path.name for path in RUNS.glob("*.json")] == [saved.name], "once"
    assert result.ret == pytest.ExitCode.OK
    run_light(pytester, "--resume").assert_outcomes(passed=COUNT - 1, deselected=1)
    assert (older / journal.FINISHED).exists()
    assert main(["recover"]) == 1
    assert "no unfinished session" in capsys.readouterr().err


def test_a_run_that_cannot_be_saved_then_fails_and_stays_unfinished(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken(pytester, "--benchmark-save=whole", passed=COUNT)

    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recovering, "write_whole", full)
    result = run_light(pytester, "--resume")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"not saved: {folder} (No space left *recover {folder}"])
    assert not (folder / journal.FINISHED).exists()


def test_the_last_session_with_these_options_is_taken(pytester: pytest.Pytester) -> None:
    meant = broken(pytester)
    other = broken(pytester, "--seed=3")
    run_light(pytester, "--resume").assert_outcomes(passed=COUNT - 1, deselected=1)
    assert (meant / journal.FINISHED).exists()
    told = refused(pytester, other)
    assert f"{other} ran with other options: seed 3 then, 0 now" in told
    (meant / journal.FINISHED).unlink()
    said(meant, lambda session: session["code"].update(blockshock="0123"))
    assert f"{meant} has numbers" in refused(pytester, other), "it ran with these options, later ones did not"


def test_what_is_no_journal_is_passed_over_and_named(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    meant = broken(pytester)
    damaged, empty, unmeasured = (meant.parent / name for name in ("0007_damaged", "0008_empty", "0009_unmeasured"))
    shutil.copytree(meant, damaged)
    (damaged / journal.SESSION).write_text("{")
    empty.mkdir()
    shutil.copytree(meant, unmeasured)
    (unmeasured / journal.METRICS).write_text('{"ceilings": {}}')
    reasons = [f"{unmeasured}: no benchmark", f"{empty} is no journal: *", f"{damaged} is no journal: *"]
    capsys.readouterr()
    assert main(["recover"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("Saved: ")
    assert [line.partition(": ")[0] for line in told[1:]] == ["passed over"] * 3
    result = run_light(pytester, "--resume")
    result.stdout.fnmatch_lines([f"passed over: {reason}*" for reason in reasons])
    result.assert_outcomes(passed=COUNT - 1, deselected=1)
    assert "no unfinished session" in "\n".join(run_light(pytester, "--resume").errlines)


@pytest.mark.parametrize("odd", [None, 3, "x", [3], {"x": 3}], ids=str)
@pytest.mark.parametrize(
    "name", ["settings", "selection", "save", "code", "threads", "tests", "arguments", "blockshock"]
)
def test_a_session_that_says_odd_things_is_gone_on_with_or_refused(
    name: str, odd: object, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    mine = decisive(pytestconfig, CPU_DEFAULTS)
    told = {"machine_info": {}, "commit_info": {}, "datetime": "", "version": ""} | json.loads(safe_dumps(mine))
    place = told["machine_info"] if name == "blockshock" else told
    place[name] = odd
    folder = tmp_path / "journal" / "0001"
    folder.mkdir(parents=True)
    (folder / journal.SESSION).write_text(json.dumps(told))
    (folder / journal.METRICS).write_text('{"benchmark": {"fullname": "a"}}')
    if name in {"settings", "selection", "code"}:
        with pytest.raises(pytest.UsageError, match=f"python -m blockshock recover {folder}"):
            take_over(pytestconfig, CPU_DEFAULTS, tmp_path, mine)
        return
    resumed = take_over(pytestconfig, CPU_DEFAULTS, tmp_path, mine)
    assert resumed.save == (odd if (name, odd) == ("save", "x") else None)
    assert resumed.held is not None
    resumed.held.release()


def test_recover_says_what_became_of_the_session(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*folder: str) -> list[str]:
        capsys.readouterr()
        assert main(["recover", *folder]) == 0
        return capsys.readouterr().out.splitlines()

    folder = broken(pytester, "--benchmark-save=whole")
    held = journal.hold(folder)
    assert held is not None
    assert told() == [f"Saved: {RUNS}/0001_recovered.json", "Its session still runs: this is what it has so far"]
    held.release()
    before = "Saved before, and nothing came since"
    assert told() == [f"{before}: {RUNS}/0001_recovered.json"]
    run_light(pytester, "--resume")
    ended = "Its session came to its end by itself"
    assert told(str(folder)) == [f"{before}: {RUNS}/0002_whole.json", f"{ended}, and its run was saved"]
    (RUNS / "0002_whole.json").unlink()
    assert told(str(folder)) == [f"Saved: {RUNS}/0002_recovered.json", ended]


def test_what_comes_while_a_journal_is_recovered_is_not_taken_for_saved(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken(pytester)

    def read(path: Path) -> journal.Journal:
        found = journal.read_journal(path)
        with (path / journal.METRICS).open("a") as file:
            file.write('\n{"passed": "later"}')
        return found

    monkeypatch.setattr(recovering, "read_journal", read)
    recovering.recover(folder)
    assert recovering.recovered(folder) is None
