"""``--resume`` joins nothing that does not belong together."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from broken_sessions import COUNT, RUNS, Change, broken, no_worker, refused, run_light, said
from pytest_benchmark.utils import safe_dumps
from resolving import CPU_DEFAULTS

import blockshock.plugin
from blockshock import registry
from blockshock.plugin.resuming import take_over
from blockshock.plugin.session import code, decisive, described, digests
from blockshock.saved import journal
from blockshock.saved.results import read_run

__all__ = ["no_worker"]
pytest_plugins = ["pytester"]

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
    (fixtures := pytester.path / "conftest.py").write_text(fixtures.read_text() + "\n")
    assert "code of conftest.py " in refused(pytester, folder)
    fixtures.write_text(fixtures.read_text()[:-1])
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert "threads: OMP_NUM_THREADS " in refused(pytester, folder)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "3")
    assert "CUDA_DEVICE_MAX_CONNECTIONS None then, 3 now" in refused(pytester, folder)
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")


def test_what_decides_no_number_may_differ(pytester: pytest.Pytester) -> None:
    folder = broken(pytester)
    said(folder, lambda told: told["settings"].update(rank_timeout=7, extend=["./same.py"]))
    assert run_light(pytester, "--resume", "--benchmark-save=all").ret == pytest.ExitCode.OK
    assert (folder / journal.FINISHED).exists()


def test_a_file_has_its_place_below_the_root_wherever_pytest_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (test := tmp_path / "tests" / "test_a.py").write_text("")
    found = []
    for folder in (tmp_path, test.parent):
        monkeypatch.chdir(folder)
        found.append(digests([test], tmp_path))
    assert [*found[0]] == ["tests/test_a.py"]
    assert found[0] == found[1]


def test_where_nothing_is_kept_it_is_said_where_that_was_looked_for(pytester: pytest.Pytester) -> None:
    broken(pytester)
    told = run_light(pytester, "--resume", "--benchmark-storage=file://./elsewhere").stderr.str()
    assert f"nothing is kept in {pytester.path / 'elsewhere' / 'journal'}; start where that session was" in told


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
        before = code([], tmp_path)["blockshock"]
        (package / name).write_text("after")
        changed += [name] if code([], tmp_path)["blockshock"] != before else []
    assert changed == names[:3]
    told = decisive(pytestconfig, replace(CPU_DEFAULTS, extend=(str(mine),)))["code"]
    mine.write_text("after")
    assert code([str(mine)], tmp_path)[mine.name] != told[str(mine)], "outside the root by all of its path"


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


def test_what_is_recovered_is_dated_as_what_is_saved_wherever_it_ran(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By these dates the last of several runs is found, and the last of two results."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        dated = datetime.fromisoformat(described(pytestconfig)["datetime"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert dated.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - dated) < timedelta(minutes=5)


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
