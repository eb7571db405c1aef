"""``--resume`` and `recover` lose nothing, and are kept from nothing by what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from broken_sessions import COUNT, RUNS, broken, no_worker, refused, run_light, said
from inner_pytest import light_suite

import blockshock.plugin  # noqa: F401 # loaded before pytester notes what is: torch cannot be loaded twice
from blockshock.__main__ import main
from blockshock.saved import journal, recovering
from blockshock.saved.results import read_run

__all__ = ["no_worker"]
pytest_plugins = ["pytester"]


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


def test_a_disk_that_is_full_when_a_session_begins_is_said_and_its_journal_begins_later(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session holds its journal from the first try on: it is no other that runs."""
    light_suite(pytester.path)
    tries, plain = [0], journal.write_whole

    def full_at_first(path: Path, content: str | bytes) -> None:
        tries[0] += path.name == journal.SESSION
        if tries[0] == 1:
            raise OSError(28, "No space left on device")
        plain(path, content)

    monkeypatch.setattr("blockshock.plugin.journal.write_whole", full_at_first)
    result = run_light(pytester, "--benchmark-save=whole")
    assert tries[0] > 1
    assert result.ret == pytest.ExitCode.OK
    assert "still runs" not in result.stdout.str() + result.stderr.str()
    (folder,) = RUNS.parent.glob("journal/*")
    assert (folder / journal.SESSION).exists()
    assert (folder / journal.FINISHED).exists()


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
